"""JSON that every parser reads, also of numbers that are not finite.

Python writes NaN and Infinity as they are, which RFC 8259 does not know: one loss that is NaN, and
no browser reads the document. Here they are the strings "NaN", "Infinity" and "-Infinity", as in
the JSON of Protocol Buffers. `float` takes them back, and so does pydantic where a field is a
float. Knows nothing of what is written.
"""

import json
import math
from typing import Any


def dumps(value: Any, *, separators: tuple[str, str] | None = None) -> str:
    """The value as a JSON text."""
    try:
        return json.dumps(value, allow_nan=False, separators=separators)
    except ValueError:
        return json.dumps(plain(value), allow_nan=False, separators=separators)


def plain(value: Any) -> Any:
    """The value with the strings in place of numbers that are not finite."""
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
    return value
