"""What an error of torch says about the device: is its memory full, can it still be used?

Pure functions of an error; torch is not imported.
"""

from collections.abc import Iterator

FULL = (
    "out of memory",  # torch.OutOfMemoryError, "CUDA error: out of memory", NCCL, Triton
    "can't allocate memory",  # the CPU's allocator
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cufft_alloc_failed",
    # A library's handle or workspace that found no room, or something worse: then the next try
    # says so.
    "cublas_status_not_initialized",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "_allocation_failed",
)
"""Parts of the messages of an error that more memory would have, or may have, prevented."""

STICKY = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "invalid program counter",
    "uncorrectable ecc error",
    "hardware stack error",
    "the launch timed out",
    "unrecoverable error",
    "gpu is lost",
)
"""Parts of the messages of an error after which every further call to CUDA fails in this process
(CUDA Runtime API, "Error Handling": errors that leave the context unusable)."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory was too small: work that needs less of it may succeed."""
    return any(_says(each, FULL) for each in _with_causes(error))


def sticky(error: BaseException) -> bool:
    """Whether only a new process can use the device again."""
    return any(_says(each, STICKY) for each in _with_causes(error))


def _says(error: BaseException, parts: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError | MemoryError) and any(part in text for part in parts)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: vLLM wraps errors of its workers."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        yield each
        seen.append(each)
        each = each.__cause__ or each.__context__
