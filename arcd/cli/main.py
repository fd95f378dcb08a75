"""The command line `arcd`: all verbs in one app, and errors as exit codes.

Exit code 0: done; 1: failed; 2: the input or the usage was wrong; 130: interrupted. Results go to
standard output, progress and errors to standard error.
"""

import sys
from collections.abc import Callable, Sequence

import typer

from arcd.cli import daemon, experiments, jobs, results
from arcd.cli.app import err
from arcd.cli.forget import forget
from arcd.cli.run import run
from arcd.display.terminal import one_line
from arcd.errors import in_one_line, known

VERBS: dict[str, Callable[..., None]] = {
    "serve": daemon.serve,
    "submit": jobs.submit,
    "watch": jobs.watch,
    "jobs": jobs.jobs,
    "status": jobs.status,
    "result": results.result,
    "cancel": jobs.cancel,
    "pause": jobs.pause,
    "resume": jobs.resume,
    "retry": jobs.retry,
    "forget": forget,
    "logs": daemon.logs,
    "stop": daemon.stop,
    "run": run,
    "eval": results.evaluate,
    "merge": results.merge,
    "show": results.show,
    "report": results.report,
    "doctor": experiments.doctor,
    "bench": experiments.bench,
    "sweep": experiments.sweep,
    "pretrain": experiments.pretrain,
}
"""In the order in which `arcd --help` lists them."""

app = typer.Typer(
    name="arcd",
    help="Test-time fine-tuning on ARC-AGI: a resident trainer and a running vLLM engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, verb in VERBS.items():
    app.command(name)(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the arguments say, by default those of the process, and exit.

    An error that arcd can explain is one line on standard error and the error's exit code.
    """
    try:
        app(args=arguments)
    except KeyboardInterrupt:
        err.print("arcd: interrupted")
        sys.exit(130)
    except Exception as error:
        explained = known(error)
        if explained is None:
            raise
        err.print(one_line(f"arcd: {in_one_line(str(explained))}"), style="red", soft_wrap=True)
        sys.exit(explained.exit_code)
