"""The folder of trained adapters: which are there, and when they are deleted.

An adapter is as large as an answer is small, so none is kept beyond its use. Knows nothing of who
uses an adapter.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from arcd.backends.protocols import Adapter, is_adapter_name

LEAST_FREE_BYTES = 4 << 30
"""Free space of the disk below which no adapter is kept for a later round."""


class AdapterFolder:
    """Adapters by their serial numbers, each a PEFT folder in `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, serial: int | None) -> Adapter | None:
        """The adapter of this number, if it is there."""
        if serial is None:
            return None
        adapter = Adapter.under(self._path, serial)
        return adapter if adapter.path.is_dir() else None

    def discard(self, *serials: int | None) -> None:
        """Delete these adapters; None stands for no adapter."""
        for serial in serials:
            if serial is not None:
                shutil.rmtree(Adapter.under(self._path, serial).path, ignore_errors=True)

    def keep_only(self, serials: Collection[int]) -> None:
        """Delete all adapters but these, and what a dead process was writing.

        Whatever else somebody has put into the folder stays.
        """
        kept = {Adapter.under(self._path, serial).path.name for serial in serials}
        for folder in self._path.iterdir() if self._path.is_dir() else ():
            if folder.name not in kept and is_adapter_name(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def has_room(self) -> bool:
        """Whether the disk can take adapters that are kept for a later round."""
        return self._path.is_dir() and shutil.disk_usage(self._path).free > LEAST_FREE_BYTES
