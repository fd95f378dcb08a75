"""A finding: what one check of `arcd doctor` has found, as a value that is printed and sent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is False where something has to be done."""

    name: str
    value: str
    ok: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of its parts, in their order."""
    advice: str = ""
    """What to do about it, where it is not ok."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind it, as JSON has them."""

    def to_json(self) -> dict[str, object]:
        """Without its name, and without what it does not have."""
        found: dict[str, object] = {"ok": self.ok, "value": self.value}
        more = {"advice": self.advice, "seconds": dict(self.seconds), "data": dict(self.data)}
        return found | {key: value for key, value in more.items() if value}

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Self:
        """The finding that `to_json` made the object from."""
        return cls(name, **value)


def finite(value: Any) -> Any:
    """A value as JSON has it, in which null is in place of NaN and infinities: JSON has none."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: finite(each) for key, each in value.items()}
        case list() | tuple():
            return [finite(each) for each in value]
    return value
