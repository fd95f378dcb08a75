"""The options of a daemon; they travel as JSON on its command line.

A new field has a default, so that older commands stay valid. Knows nothing of what is done with
them.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from arcd.config import Config


def address(host: str, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Options(BaseModel):
    """What a daemon is started with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    base: Path
    device: str = "auto"
    config: Config = Config()
    host: str | None = None
    port: int = 0
    grace: float = 30.0
    """Seconds in which the tasks in flight may be finished when the daemon is to end."""
    since: int = 0
    """Leave alone the unfinished jobs that were last asked for before the record of this number."""
    began: int | None = None
    """The last record before the command that keeps this daemon alive began: what was asked for or
    answered since is published, also where an earlier daemon of it died before. None: no earlier
    one."""
    compiled: Path | None = None
    """Folder of what torch compiles; by default that of the home."""
    backend: Literal["real", "fake"] = "real"
    """Trainer and engine with a model, or fakes: see `fake_runtime`."""

    @property
    def base_name(self) -> str:
        """The base as jobs remember it. That of fakes is no folder, so that no daemon with a model
        takes up a job of theirs, or they one of its."""
        return str(self.base) if self.backend == "real" else "fake"
