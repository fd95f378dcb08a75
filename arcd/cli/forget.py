"""`arcd forget`: delete finished jobs with all that is kept of them, and give the disk back."""

import json
import time
from typing import Annotated

import typer

from arcd.cli.app import HomeFolder, Json, home_of, reading, say
from arcd.errors import BadJob


def forget(
    job: Annotated[int | None, typer.Argument(help="The job's number", metavar="JOB")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="All finished jobs untouched for so long, e.g. 30d or 12h"),
    ] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Delete a finished job: its records, samples and files in the home, not its --out."""
    from arcd.daemon.client import Client
    from arcd.daemon.forgetting import forget_offline
    from arcd.jobs.state import FINISHED
    from arcd.scheduling.budget import seconds

    if (job is None) == (older_than is None):
        raise typer.BadParameter("give JOB or --older-than", param_hint="JOB")
    with reading(home) as reader:
        if older_than is None:
            assert job is not None
            found = reader.job(job)
            if found["state"] not in FINISHED:
                raise BadJob(f"job {job}: it is {found['state']}; cancel it first")
            chosen = [job]
        else:
            before = time.time() - seconds(older_than)
            chosen = [
                found["job"]
                for found in reader.jobs()
                if found["state"] in FINISHED and found["touched"] < before
            ]
        if isinstance(reader, Client):
            for number in chosen:
                reader.forget(number)
        elif chosen:
            forget_offline(home_of(home), chosen)
    if as_json:
        print(json.dumps({"forgotten": chosen}))
    else:
        say(f"forgotten: {', '.join(map(str, chosen)) or 'no job'}")
