"""Files written whole: a reader sees the old text or the new one, also after a power cut.

    replace_text   replaces a regular file, where the path's symbolic links lead, and nothing else
    write_text     the same, and writes into what cannot be replaced: a device, a pipe
    obstacle       why `replace_text` could not write now
    holds          whether a file has a text already

Knows nothing of what is in them.
"""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arcd.errors import ArcdError

MOST_LINKS = 40
"""Symbolic links in a row that are followed; Linux follows as many."""

LONGEST_STEM_BYTES = 200
"""Bytes of a file's name in the name of its temporary file; a name may have 255."""


def replace_text(path: Path, text: str) -> None:
    """Write a text to a temporary name beside the file, then rename it to the file's name.

    Symbolic links are followed. A file that is there keeps its mode and, where the system allows
    that, its owner. The new file is on the disk when this returns. Raises ArcdError naming the path
    where the file system refuses or what is there is no regular file; then that is unchanged.
    """
    with _explained(path):
        _replace(*_regular(path), text)


def write_text(path: Path, text: str) -> None:
    """Like `replace_text`, but a device, a pipe or an open file like /dev/stdout is written to.

    Waits where nobody reads a pipe.
    """
    with _explained(path):
        descriptor = _stream(path)
        if descriptor is None:
            _replace(*_regular(path), text)
            return
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)


def is_stream(path: Path) -> bool:
    """Whether `write_text` would write into what is there instead of replacing it."""
    try:
        return _open_file(path) is not None or _is_pipe_or_device(path)
    except (OSError, ValueError):
        return False


def obstacle(path: Path) -> str | None:
    """Why `replace_text` could not write a file there, as far as that can be told before."""
    try:
        target, _ = _regular(path)
        with suppress(FileNotFoundError):
            _temporary(target).lstat()  # its name may be too long
        if not target.parent.is_dir():
            return "its folder is not there"
        if not os.access(target.parent, os.W_OK | os.X_OK):
            return "its folder cannot be written to"
    except (OSError, ValueError) as error:
        return _reason(error)
    return None


def holds(path: Path, text: str) -> bool:
    """Whether there is a regular file with exactly this text."""
    expected = text.encode()
    try:
        target, found = _regular(path)
        same_size = found is not None and found.st_size == len(expected)
        return same_size and target.read_bytes() == expected
    except (OSError, ValueError):
        return False


def shown(path: Path) -> str:
    """A path as one line of printable text, whatever is in its name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def _regular(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where a path leads, and the regular file there, if there is one.

    Raises OSError where something else is there.
    """
    if _open_file(path) is not None:
        raise OSError(errno.EINVAL, "it names an open file of a process")
    target = Path(os.path.realpath(path))
    try:
        found = target.lstat()
    except FileNotFoundError:
        return target, None
    if stat.S_ISREG(found.st_mode):
        return target, found
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(found.st_mode):  # `realpath` has found no end
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    raise OSError(errno.EINVAL, "it is not a regular file")


def _stream(path: Path) -> int | None:
    """A descriptor to write to what cannot be replaced; None where a file can be."""
    descriptor = _open_file(path)
    if descriptor is not None:
        # A copy shares its position, so that nothing that was printed is overwritten.
        sys.stdout.flush()
        return os.dup(descriptor)
    return os.open(path, os.O_WRONLY | os.O_NOCTTY) if _is_pipe_or_device(path) else None


def _open_file(path: Path) -> int | None:
    """The descriptor of this process that a path like /dev/stdout or /proc/self/fd/1 names.

    Raises OSError where symbolic links go round in circles.
    """
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        path = Path(folder, path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_pipe_or_device(path: Path) -> bool:
    """A disk is a device, too, but nobody wants a text on it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _replace(target: Path, found: os.stat_result | None, text: str) -> None:
    temporary = _temporary(target)
    try:
        _write_durably(temporary, text, found)
        os.replace(temporary, target)
    finally:
        # Left over only where the rename did not happen.
        temporary.unlink(missing_ok=True)
    # The file is in place already, and some file systems cannot sync a folder: no error.
    with suppress(OSError):
        _sync_folder(target.parent)


def _temporary(target: Path) -> Path:
    stem = os.fsdecode(os.fsencode(target.name)[:LONGEST_STEM_BYTES])
    return target.with_name(f".{stem}.{os.getpid()}.tmp")


def _write_durably(path: Path, text: str, like: os.stat_result | None) -> None:
    """Write a new file, with the owner and mode of another where that is given."""
    path.unlink(missing_ok=True)
    mode = 0o666 if like is None else 0o600
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        if like is not None:
            with suppress(PermissionError):
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk; syncing a file does not include its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a path into an ArcdError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ArcdError(f"{shown(path)}: not written: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    """ValueError: of a path that no system call takes, e.g. one with a zero byte."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
