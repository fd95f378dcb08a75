"""Files that are there whole or not at all. Knows nothing of what is in them."""

import os
from contextlib import suppress
from pathlib import Path

from arcd.errors import ArcdError


def write_text(path: Path, text: str) -> None:
    """Put a text at `path` whole: at any moment the old file or the new one is there.

    Durable when it returns. Raises ArcdError naming the path where the file system refuses; then
    the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_durably(temporary, text)
            os.replace(temporary, path)
        finally:
            # After the rename there is none left.
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArcdError(f"{path}: not written: {error.strerror or error}") from None
    # The file is in place: a file system that cannot sync a folder must not turn that into an
    # error.
    with suppress(OSError):
        _sync_folder(path.parent)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
