"""Files written whole: a reader sees the old text or the new one, also after a power cut.

Knows nothing of what is in them.
"""

import os
from contextlib import suppress
from pathlib import Path

from arcd.errors import ArcdError


def write_text(path: Path, text: str) -> None:
    """Write a text to a temporary name, then rename it to `path`.

    The new file is on the disk when this returns. Raises ArcdError naming the path where the file
    system refuses; then the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_durably(temporary, text)
            os.replace(temporary, path)
        finally:
            # Left over only where the rename did not happen.
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArcdError(f"{path}: not written: {error.strerror or error}") from None
    # The file is in place already, and some file systems cannot sync a folder: no error.
    with suppress(OSError):
        _sync_folder(path.parent)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk; syncing a file does not include its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
