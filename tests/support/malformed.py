"""Valid documents with one thing broken: what a hostile or a careless client could send.

`broken` breaks a JSON value at a random depth, `as_bytes` writes it, `damaged` breaks the bytes. A
value may hold what no JSON writer would give: tokens as they are, keys that come twice. Everything
follows from the generator. Knows nothing of who reads it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """Text that stands in the document as it is."""

    text: bytes

    def __repr__(self) -> str:
        return f"Token({_brief(self.text)})"


@dataclass(frozen=True)
class Pairs:
    """An object with these members in this order, also where a key comes twice."""

    members: tuple[tuple[Any, Any], ...]


DEEP = 100_000
"""Levels of what is nested too deeply for any reader that calls itself."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "0", "1", "true", "null", [], {}, [[]], [{}], {"": {}}, [None]),
    *(
        -1,
        0,
        1,
        1.0,
        0.5,
        -0.0,
        1e-320,
        1.7e308,
        -1.7e308,
        2**31,
        2**53 + 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(10**30, 10**400, -(10**400)),
    *(Token(b"NaN"), Token(b"Infinity"), Token(b"-Infinity"), Token(b"1e999"), Token(b"-1e999")),
    *(Token(b"0" * 20 + b"1"), Token(b"1" * 5000), Token(b"0x10"), Token(b"1_000"), Token(b"+1")),
    *(Token(b"01"), Token(b"1."), Token(b".5"), Token(b"--1"), Token(b"1e5"), Token(b"1E400")),
    *(Token(b"'a'"), Token(b"undefined"), Token(b"nul"), Token(b""), Token(b",")),
    *("\0", "a\0b", "\n", "a\nb", "\r\n", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u200b", "\ufeff"),
    *("\u202e", "é", "e\u0301", "\U0001f600", "１２", "٣", "²", "½"),
    *(Token(b'"\\ud800"'), Token(b'"a\\udfffb"'), Token(b'"\xff"'), Token(b'"\xed\xa0\x80"')),
    *(Token(b'"\\x41"'), Token(b'"\\u12"'), Token(b'"a\tb"'), Token(b'"\xc0\xaf"')),
    *("x" * 101, "x" * 10_000, "é" * 300, "x" * 1_000_000, [0] * 10_000, [[0] * 31] * 31),
    *(
        "/",
        "..",
        "../../x",
        "~",
        "a/b",
        "[/old]",
        "[bold]",
        "[/b]",
        "%s",
        "{}",
        "$HOME",
        "-1",
        "--",
    ),
    *({str(i): i for i in range(1000)}, {"\0": 1}, {"__proto__": 1}, {"a": {"b": {"c": [1]}}}),
    *(Token(b"[" * 500 + b"]" * 500), Token(b'{"a":' * 500 + b"1" + b"}" * 500)),
    *(Token(b"[" * DEEP + b"]" * DEEP), Token(b'{"a":' * DEEP + b"1" + b"}" * DEEP)),
    *(Token(b"[" * 950 + b"]" * 950), Token(b"[" * 1100 + b"]" * 1100)),
)
"""What stands in the place of something else."""

KEYS = ("", "x", "\0", "é", "__class__", "steps", "a.b", "x" * 1000, "[/x]", "\u2028", "1", "train")


def broken(random: Random, value: Any) -> Any:
    """The value with one thing in it broken; the original is left as it is."""
    path = random.choice(_paths(value))
    return _changed(random, value, path)


def as_bytes(value: Any) -> bytes:
    """The document; as far as it is JSON, in UTF-8."""
    match value:
        case Token(text):
            return text
        case Pairs(members):
            inside = (as_bytes(key) + b": " + as_bytes(item) for key, item in members)
            return b"{" + b", ".join(inside) + b"}"
        case dict():
            return as_bytes(Pairs(tuple(value.items())))
        case list() | tuple():
            return b"[" + b", ".join(map(as_bytes, value)) + b"]"
        case str():
            return json.dumps(value, ensure_ascii=value.isascii()).encode(errors="surrogatepass")
        case _:
            return json.dumps(value).encode()


def damaged(random: Random, text: bytes) -> bytes:
    """Bytes with one thing in them broken, whatever they say."""
    at = random.randrange(len(text) + 1)
    piece = text[at : at + random.choice((1, 2, 10, 100))]
    acts: Sequence[Callable[[], bytes]] = (
        lambda: text[:at],
        lambda: text[at:],
        lambda: b"",
        lambda: text[:at] + bytes([random.randrange(256)]) + text[at + 1 :],
        lambda: text[:at] + bytes([random.randrange(256)]) + text[at:],
        lambda: text[:at] + text[at + len(piece) :],
        lambda: text[:at] + piece + text[at:],
        lambda: text[:at] + random.choice((b"\xff", b"\0", b"\xed\xa0\x80", b"\r\n")) + text[at:],
        lambda: text + random.choice((b"}", b"x", b"\0", b"{}", text)),
        lambda: random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * 1000, b"//x\n")) + text,
        lambda: text.decode(errors="replace").encode(random.choice(("utf-16", "utf-32"))),
        lambda: random.randbytes(random.choice((1, 10, 1000))),
    )
    return random.choice(acts)()


def wild_text(random: Random) -> str:
    """Text for a name, a key or an argument; it may have lone surrogates, and no zero byte."""
    texts = [value for value in VALUES if isinstance(value, str) and "\0" not in value]
    numbers = ("nan", "inf", "1e999", "1" * 5000)
    chosen = random.choice([*texts, *KEYS[3:], *numbers, "\ud800", "a\udcff"])
    return chosen if random.random() < 0.8 else chosen + random.choice(texts)


Path = tuple[Any, ...]


def _paths(value: Any, above: Path = ()) -> list[Path]:
    """The places of all things in a value; of many children that are alike, some."""
    found = [above]
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))[:3]
    for key, item in items:
        found += _paths(item, (*above, key))
    return found


def _changed(random: Random, value: Any, path: Path) -> Any:
    """The value with a change at this place."""
    if not path:
        return _spoilt(random, value)
    key, *rest = path
    if isinstance(value, dict):
        if not rest and random.random() < 0.4:
            return _member_spoilt(random, value, key)
        return {**value, key: _changed(random, value[key], tuple(rest))}
    items = list(value)
    if not rest and random.random() < 0.2:
        others = items[:key], items[key + 1 :], items[: key + 1] * 300, [*items, items]
        return random.choice(others)
    items[key] = _changed(random, items[key], tuple(rest))
    return items


def _spoilt(random: Random, value: Any) -> Any:
    """Something else in the place of a value."""
    kin: list[Any] = [[value], {"a": value}, {"": value}, [value, value], json.dumps(value)[:500]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        kin += [-value, value + 0.5, str(value), value * 10**9, bool(value), float(value), -1, 0]
    if isinstance(value, str):
        kin += [value + "\0", value + "\n", value * 200, value + "é", " " + value, value.upper()]
        begin = json.dumps(value)[:-1].encode()
        kin += [Token(begin + end + b'"') for end in (b"\\ud800", b"\xff")]
    return random.choice(kin) if random.random() < 0.3 else random.choice(VALUES)


def _member_spoilt(random: Random, value: dict[str, Any], key: str) -> Any:
    """An object in which a member lacks, comes twice or has another name, or one is too many."""
    others = {k: v for k, v in value.items() if k != key}
    odd = random.choice(KEYS)
    rest = tuple(others.items())
    twice = random.choice((value[key], random.choice(VALUES)))
    return random.choice(
        (
            others,
            {**others, odd: value[key]},
            {**value, odd: random.choice(VALUES)},
            {**value, odd: value[key]},
            Pairs((*value.items(), (key, twice))),
            Pairs(((key, twice), *value.items())),
            *(
                Pairs(((Token(name), value[key]), *rest))
                for name in (b'"\\ud800"', b'"\xff"', b"7")
            ),
        )
    )


def _brief(text: bytes) -> str:
    return repr(text) if len(text) < 60 else f"{text[:60]!r}... {len(text)} bytes"
