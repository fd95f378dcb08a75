"""Random generators by purpose: each is made from (seed of the configuration, what it is for).

No generator is shared and no global one is used, so the same seed gives the same lessons and
questions on every machine, in every order of execution. Knows nothing of tasks or models.
"""

import hashlib
import random


def seed_of(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `seed_of(0, "007bbfb7", "lessons")`."""
    name = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> random.Random:
    """A new generator for one purpose; see `seed_of`."""
    return random.Random(seed_of(seed, *purpose))
