"""Readers of stored JSON: of a text the parts that a type names; the rest is skipped unread.

Knows nothing of what is in the texts.
"""

import json
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Reader(Generic[T]):
    """Makes a value of one type of JSON texts.

    Numbers that JSON does not have, NaN and Infinity, are read as null.
    """

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, text: str) -> T:
        try:
            return self._decode(text)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python's own reader takes them.
            return self._decode(json.dumps(json.loads(text, parse_constant=lambda _: None)))
