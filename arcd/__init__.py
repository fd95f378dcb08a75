"""arcd: test-time fine-tuning on ARC-AGI with a resident base model and a running vLLM engine."""

from typing import TYPE_CHECKING

from arcd.version import __version__

if TYPE_CHECKING:
    from arcd.daemon.client import Client as Client

__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> object:
    """`from arcd import Client` imports the client, and HTTP with it, only when it is asked for."""
    if name == "Client":
        from arcd.daemon.client import Client

        return Client
    raise AttributeError(f"module 'arcd' has no attribute {name!r}")
