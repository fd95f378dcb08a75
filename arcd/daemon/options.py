"""What a daemon is started with; travels as JSON on its command line. Knows nothing else."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from arcd.config import Config


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
