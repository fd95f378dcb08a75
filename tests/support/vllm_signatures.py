"""What of vLLM's surface each version has, read from its sources, for `data/vllm-signatures.json`.

    python -m support.vllm_signatures FOLDER...

reads unpacked wheels, with `vllm` and its dist-info in each folder, and adds their versions to the
file. vLLM is not imported: only its syntax is read, so neither its packages nor a GPU are needed.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

STORED = Path(__file__).parents[1] / "data" / "vllm-signatures.json"

Names = dict[str, list[str]]
"""By a part of the surface the names that it has."""

CLASSES = {
    "EngineArgs": "engine/arg_utils.py",
    "SamplingParams": "sampling_params.py",
    "RequestOutputKind": "sampling_params.py",
    "LoRARequest": "lora/request.py",
    "LLMEngine": "v1/engine/llm_engine.py",
    "InprocClient": "v1/engine/core_client.py",
    "EngineCore": "v1/engine/core.py",
    "RequestOutput": "outputs.py",
    "CompletionOutput": "outputs.py",
    "Logprob": "logprobs.py",
    "Platform": "platforms/interface.py",
    "AttentionBackendEnum": "v1/attention/backends/registry.py",
}
"""Classes whose fields, methods and enumerated values are stored, and their files."""

PARAMETERS = {
    "LLMEngine": ("from_engine_args", "add_request", "abort_request", "add_lora", "remove_lora"),
    "LoRARequest": (),
}
"""Methods whose parameters are stored, in their order."""


def read(folder: Path) -> tuple[str, dict[str, Any]]:
    """The version of an unpacked wheel, and its part of the stored file."""
    [metadata] = folder.glob("vllm*.dist-info/METADATA")
    told = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
    package = folder / "vllm"
    names: Names = {}
    for name, file in CLASSES.items():
        found = _class(package / file, name)
        names[name] = sorted(_members(found))
        for method in PARAMETERS.get(name, ()):
            names[f"{name}.{method}"] = _parameters(found, method)
    # A msgspec.Struct is built from its fields in their order.
    names["LoRARequest"] = _fields(_class(package / CLASSES["LoRARequest"], "LoRARequest"))
    names["environment"] = sorted(_environment(package / "envs.py"))
    names["vllm"] = sorted(_exports(package / "__init__.py"))
    names["logprobs_mode"] = _literals(package / "config/model.py", "LogprobsMode")
    names["max_lora_rank"] = _literals(package / "config/lora.py", "MaxLoRARanks")
    requires = told.get_all("Requires-Dist") or []
    return told["Version"], {
        "python": told["Requires-Python"],
        "torch": _required(requires, "torch"),
        "transformers": _required(requires, "transformers"),
        "names": names,
    }


def _class(file: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def _fields(found: ast.ClassDef) -> list[str]:
    """Annotated names of a class, in their order."""
    return [
        node.target.id
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _members(found: ast.ClassDef) -> set[str]:
    """Fields, methods, constants, and what `__init__` gives `self` or takes."""
    members = set(_fields(found))
    for node in ast.walk(found):
        if isinstance(node, ast.FunctionDef):
            members.add(node.name)
            if node.name == "__init__":
                members |= {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
        elif isinstance(node, ast.Assign):
            members |= {each.id for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            members.add(node.attr)
    return members - {"self"}


def _parameters(found: ast.ClassDef, method: str) -> list[str]:
    node = next(n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == method)
    return [each.arg for each in (*node.args.args, *node.args.kwonlyargs)][1:]


def _environment(file: Path) -> set[str]:
    return set(re.findall(r'^ {4}"(VLLM_\w+)": ', file.read_text(encoding="utf-8"), re.MULTILINE))


def _exports(file: Path) -> set[str]:
    return set(re.findall(r'^ {4}"(\w+)": "', file.read_text(encoding="utf-8"), re.MULTILINE))


def _literals(file: Path, name: str) -> list[str]:
    """The values of a `Literal` that a module gives a name, as text."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return [str(each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)]
    raise LookupError(f"{file}: no {name}")


def _required(requires: Iterable[str], package: str) -> str:
    """The versions of a package that a wheel asks for, such as "==2.11.0"; "" for any."""
    for each in requires:
        if found := re.match(rf"{package}(?=[ =<>!~;]|$)([^;]*)(?!.*extra)", each):
            return found[1].strip()
    return ""


def surface(stored: Mapping[str, Any], version: str) -> Names:
    """By a part of vLLM's surface the names that a stored version has."""
    place = list(stored["versions"]).index(version)
    return {
        part: [name for name, ranges in names.items() if place in _places(stored, ranges)]
        for part, names in stored["names"].items()
    }


def merged(surfaces: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What is stored of all versions: by name the ranges of versions that have it."""
    versions = sorted(surfaces, key=lambda version: [int(each) for each in version.split(".")])
    names: dict[str, dict[str, list[str]]] = {}
    for place, version in enumerate(versions):
        for part, those in surfaces[version]["names"].items():
            kept = names.setdefault(part, {})
            for name in those:
                ranges = kept.setdefault(name, [])
                before = versions[place - 1] if place else None
                if ranges and ranges[-1].split(" - ")[-1] == before:
                    ranges[-1] = f"{ranges[-1].split(' - ')[0]} - {version}"
                else:
                    ranges.append(version)
    facts = {
        version: {key: value for key, value in surfaces[version].items() if key != "names"}
        for version in versions
    }
    return {"versions": facts, "names": names}


def _places(stored: Mapping[str, Any], ranges: list[str]) -> set[int]:
    versions = list(stored["versions"])
    places: set[int] = set()
    for each in ranges:
        first, *_, last = each.split(" - ") * 2
        places |= set(range(versions.index(first), versions.index(last) + 1))
    return places


def _main(folders: Iterable[str]) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    surfaces = {
        version: {**facts, "names": surface(stored, version)}
        for version, facts in stored.get("versions", {}).items()
    }
    surfaces |= dict(read(Path(folder)) for folder in folders)
    text = json.dumps(merged(surfaces), indent=0, ensure_ascii=False)
    # One line for each name.
    STORED.write_text(re.sub(r"\[\n\s*([^\]]*?)\n\s*\]", r"[\1]", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1:])
