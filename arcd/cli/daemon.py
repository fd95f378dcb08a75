"""The verbs of the daemon itself: serve, logs, stop.

`serve` keeps a daemon alive in the foreground; the other two need only its home folder and its
socket. Knows nothing of jobs.
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from arcd.cli.app import (
    STALL_S,
    Backend,
    BackendOption,
    Base,
    ConfigFile,
    Device,
    HomeFolder,
    Json,
    Settings,
    Stall,
    client_of,
    far_daemon,
    home_of,
    home_to_read,
    say,
    settle,
)
from arcd.errors import NoDaemon

if TYPE_CHECKING:
    from arcd.daemon.supervisor import Incident, Progress

PORT = 8710
"""The TCP port of a daemon that listens on one, unless `--port` says otherwise."""

LINE_POLL_S = 0.2
"""Seconds between two looks for a new line in the log."""

STOP_POLL_S = 0.1
"""Seconds between two looks whether the daemon has ended."""


def serve(
    base: Base = None,
    device: Device = "auto",
    config: ConfigFile = None,
    settings: Settings = None,
    host: Annotated[
        str | None, typer.Option(help="Listen by TCP too, for clients that have the token")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="8710 by default")] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds to finish the tasks in flight")
    ] = 30.0,
    stall: Stall = STALL_S,
    home: HomeFolder = None,
    as_json: Json = False,
    backend: BackendOption = Backend.real,
) -> None:
    """Load the base model once and work through jobs until Ctrl-C; a second one ends it at once."""
    from arcd.daemon import foreground
    from arcd.daemon.options import address
    from arcd.daemon.watchdog import Limits

    place = home_of(home)
    if port is not None:
        host = host or "127.0.0.1"
    port = port or PORT
    options = settle(
        place.path,
        base,
        device,
        config,
        settings,
        host=host,
        port=port,
        grace=grace,
        backend=backend,
    )

    def progress(now: "Progress", pid: int) -> None:
        where = {"url": f"http://{address(host, port)}", "token": str(place.token)} if host else {}
        _tell(now, as_json=as_json, pid=pid, home=str(place.path), **where)

    def report(incident: "Incident") -> None:
        _tell(incident.kind, as_json=as_json, reason=incident.text, log=str(place.log))

    code = foreground.serve(options, limits=Limits(floor=stall), report=report, progress=progress)
    _tell("stopped", as_json=as_json)
    raise typer.Exit(code)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The last so many")] = 100,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """What the daemon printed."""
    path = home_to_read(home).log
    if not path.is_file():
        raise NoDaemon(f"{path}: no daemon has run here yet")
    for line in _lines(path, lines, follow=follow):
        print(json.dumps({"line": line}) if as_json else line, flush=follow)


def stop(
    wait: Annotated[bool, typer.Option(help="Until it has ended")] = True,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """End the daemon in order: finish or set aside the tasks in flight, write the submissions."""
    from arcd.system.home_lock import HomeLock

    with client_of(home) as client:
        client.stop()
        while wait:
            try:
                client.health()
            except NoDaemon:
                break
            time.sleep(STOP_POLL_S)
    # The next daemon must find the home free, if it is one on this machine.
    while wait and not far_daemon(home) and HomeLock.held(home_of(home).path):
        time.sleep(STOP_POLL_S)
    state = "stopped" if wait else "stopping"
    if as_json:
        print(json.dumps({"state": state}))
    else:
        say(state)


def _tell(event: str, *, as_json: bool, **what: object) -> None:
    """One line for a change of the daemon, at once also into a pipe."""
    if as_json:
        print(json.dumps({"event": event, **what}), flush=True)
    else:
        say(f"arcd {event}  {'  '.join(f'{key} {value}' for key, value in what.items())}")


def _lines(path: Path, count: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a file and, with `follow`, each line that is added.

    They go on in the file that takes its place when it is put aside, and from the beginning of one
    that is emptied.
    """
    with ExitStack() as opened:
        file: BinaryIO = opened.enter_context(path.open("rb"))
        last = deque(file, maxlen=count)
        torn = last.pop() if follow and last and not last[-1].endswith(b"\n") else b""
        yield from map(_line, last)
        while follow:
            if added := file.readline():
                torn += added
                if torn.endswith(b"\n"):
                    yield _line(torn)
                    torn = b""
            elif successor := _successor(path, file):
                torn += file.read()  # what came just before it was put aside
                yield from map(_line, torn.splitlines())
                torn = b""
                file.close()
                file = opened.enter_context(successor)
            else:
                time.sleep(LINE_POLL_S)


def _line(text: bytes) -> str:
    return text.rstrip(b"\n").decode(errors="replace")


def _successor(path: Path, file: BinaryIO) -> BinaryIO | None:
    """The file to go on with, from its beginning, if `file` is no longer the one at `path` or was
    emptied; None while it is the right one, and before there is another."""
    with suppress(FileNotFoundError):
        now = path.stat()
        if os.path.samestat(now, os.fstat(file.fileno())) and now.st_size >= file.tell():
            return None
        return path.open("rb")
    return None
