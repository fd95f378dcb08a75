"""Every error that arcd raises on purpose; the first line of a docstring is the default message.

ArcdError                 exit code 1: something arcd can explain in one line
├── BadInput              exit code 2: the caller gave something that cannot be used
│   ├── BadJob            something that cannot be done with a job
│   │   └── NoJob         ... because there is no such job
│   ├── BadGrid           not a rectangle of 1..30 x 1..30 colours 0..9
│   ├── BadTask           a task or a set of tasks that cannot be read
│   ├── BadConfig         an unknown option or an impossible value
│   ├── BadBase           a base model folder that cannot be used
│   └── BadSubmission     a submission file that cannot be read
├── MissingPackage        a part of arcd that is not installed here
├── TrainerFailed         an adapter could not be trained
│   ├── OutOfMemory       ... because its lessons do not fit the memory
│   └── DiskFull          ... because there is no room to write it
├── SampleRefused         the engine does not take this adapter or request
├── EngineFailed          the engine stopped
├── DeviceLost            only a new process can use the GPU again
├── StoreFailed           the jobs cannot be read or written
├── HomeInUse             another arcd has locked the home folder
├── DaemonFailed          the daemon ended, and starting it again would not help
├── NotPublished          a file does not have the submission of a job that is over
├── NoDaemon              no daemon answers in the home folder
└── RunInterrupted        exit code 130: Ctrl-C; what was done is kept

Knows nothing of the rest of arcd.
"""


def known(error: BaseException) -> "ArcdError | None":
    """The first ArcdError in an error or in a (nested) exception group; None if there is none."""
    if isinstance(error, BaseExceptionGroup):
        found = (known(inner) for inner in error.exceptions)
        return next((inner for inner in found if inner is not None), None)
    return error if isinstance(error, ArcdError) else None


LONGEST_LINE = 1000
"""Characters of an error that is told: it may repeat what was given, and that may be a megabyte."""


def in_one_line(error: str) -> str:
    """An error's message on one line, without its middle where it is longer than LONGEST_LINE."""
    line = " ".join(error.splitlines())
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2 - 5
    return f"{line[:half]} [...] {line[-half:]}"


class ArcdError(Exception):
    """arcd could not go on."""

    exit_code = 1
    """Exit code of a command that ends with this error."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class BadInput(ArcdError):
    """The input cannot be used as it is."""

    exit_code = 2


class BadGrid(BadInput):
    """The grid is not a rectangle of 1..30 x 1..30 colours 0..9."""


class BadTask(BadInput):
    """The task cannot be used as it is."""


class BadConfig(BadInput):
    """The configuration cannot be used as it is."""


class BadBase(BadInput):
    """The base model cannot be used as it is."""


class BadSubmission(BadInput):
    """The submission cannot be read."""


class BadJob(BadInput):
    """This cannot be done with the job."""


class NoJob(BadJob):
    """There is no such job."""


class MissingPackage(ArcdError):
    """A package that this command needs is not installed: see the README on CPU and GPU."""


class TrainerFailed(ArcdError):
    """The adapter could not be trained."""


class OutOfMemory(TrainerFailed):
    """The training ran out of memory."""

    def __init__(self, message: str | None = None, *, fits: int | None = None) -> None:
        """`fits` are the tokens of a lesson that would fit, if that is known."""
        super().__init__(message)
        self.fits = fits


class DiskFull(TrainerFailed):
    """The disk has no room for the adapter."""


class SampleRefused(ArcdError):
    """The engine refused to sample this."""


class EngineFailed(ArcdError):
    """The inference engine stopped."""


class DeviceLost(ArcdError):
    """The GPU cannot be used any more in this process."""

    @classmethod
    def after(cls, error: BaseException) -> "DeviceLost":
        """The error to raise after one that has left the GPU unusable."""
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return cls(f"the GPU cannot be used any more in this process: {in_one_line(first)}")


class StoreFailed(ArcdError):
    """The store cannot be read or written."""


class HomeInUse(ArcdError):
    """Another daemon has the home folder."""


class DaemonFailed(ArcdError):
    """The daemon cannot go on, and starting it again would not help."""

    def __init__(self, message: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotPublished(ArcdError):
    """A file does not have the submission of a job that is over."""


class NoDaemon(ArcdError):
    """No daemon answers; start one with: arcd serve."""


class RunInterrupted(ArcdError):
    """Interrupted; what was answered is kept, and the same command goes on from here."""

    exit_code = 130
