"""What others rely on stays: the command line and the HTTP API are those of version 0.1.0.

The files in tests/data were taken from that version, without its help texts, titles and
descriptions. In the command line's, a key that is missing is null or false.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.testclient import TestClient

from arcd.cli.main import app
from arcd.config import resolve
from arcd.daemon import server
from arcd.jobs.service import JobService
from arcd.jobs.store import Store

DATA = Path(__file__).parents[1] / "data"

HIDDEN = {"run": {"--backend"}, "serve": {"--backend"}}
"""Options for developers, by verb; they came after 0.1.0 and may go again."""

ADDED_OPTIONS = {
    "bench": {"--lessons-of"},
    "doctor": {"--set", "--thorough", "--seconds"},
}
"""By verb; they came after 0.1.0, and without them all is as it was."""

NEW_VERBS = {"forget"}
"""They came after 0.1.0."""

ADDED_METHODS = {"/jobs/{job}": {"delete"}}
"""Of the HTTP API, by path; they came after 0.1.0."""

ADDED_PARAMETERS = {"/jobs/{job}/events": {"brief"}, "/jobs/{job}/forecast": {"detail"}}
"""Query parameters that came after 0.1.0, by path; without them all is as it was."""

ADDED = {"Status": {"unpublished", "touched"}, "Order": {"skipped"}, "Health": {"hardware"}}
"""Fields of the HTTP API's messages that came after 0.1.0; none may be required."""

PROSE = ("description", "title", "summary", "operationId")

COMMANDS = typer.main.get_group(app).commands
STORED = json.loads((DATA / "cli-0.1.0.json").read_text())


def surface(parameter: Any) -> dict[str, Any]:
    """What a script may depend on of an argument or an option."""
    kind, default = parameter.type_descriptor.annotation, parameter.default
    argument = type(parameter).__name__ == "TyperArgument"
    found = {
        "opts": sorted([*parameter.opts, *parameter.secondary_opts]),
        "required": parameter.required,
        "type": getattr(kind, "__name__", str(kind)),
        "multiple": parameter.multiple,
        "flag": getattr(parameter, "is_flag", False),
        "default": default if isinstance(default, int | float | str | None) else str(default),
        "min": parameter.min,
        "max": parameter.max,
        "envvar": parameter.envvar,
        "metavar": parameter.metavar if argument else None,
    }
    return {key: value for key, value in found.items() if value is not None and value is not False}


def is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_prose(inner)
            for key, inner in value.items()
            if not (key in PROSE and isinstance(inner, str))
        }
    return [without_prose(inner) for inner in value] if isinstance(value, list) else value


def test_the_verbs_are_those_of_0_1_0() -> None:
    assert set(COMMANDS) - NEW_VERBS == set(STORED)


@pytest.mark.parametrize("verb", sorted(STORED))
def test_the_options_of_a_verb_are_those_of_0_1_0(verb: str) -> None:
    found = COMMANDS[verb].params
    added = [each for each in found if ADDED_OPTIONS.get(verb, set()).intersection(each.opts)]
    assert not any(each.required for each in added)
    shown = [each for each in found if not is_hidden(each) and each not in added]
    assert [surface(each) for each in shown] == STORED[verb]
    assert {name for each in found if is_hidden(each) for name in each.opts} == HIDDEN.get(
        verb, set()
    )


def test_the_http_api_is_that_of_0_1_0(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # Nothing is asked here: the document follows from the routes alone.
    asked: Any = None
    found = server.application(
        JobService(store),
        resolve(),
        publishing=asked,
        check=asked,
        health=asked,
        forecast=asked,
        stop=asked,
        forget=asked,
    )
    document = TestClient(found).get("/openapi.json").json()
    store.close()
    stored = json.loads((DATA / "openapi-0.1.0.json").read_text())
    del stored["info"]["version"], document["info"]["version"]
    for path, methods in ADDED_METHODS.items():
        for method in methods:
            del document["paths"][path][method]
    for path, added in ADDED_PARAMETERS.items():
        operation = document["paths"][path]["get"]
        parameters = {each["name"]: each for each in operation["parameters"]}
        assert not any(parameters.pop(name)["required"] for name in added)
        operation["parameters"] = list(parameters.values())
    for name, fields in ADDED.items():
        message = document["components"]["schemas"][name]
        assert fields.isdisjoint(message["required"])
        for field in fields:
            del message["properties"][field]
    assert without_prose(document) == stored
