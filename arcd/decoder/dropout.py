"""Dropout whose masks depend on a seed, the step and the place alone.

torch draws them from one generator for the whole process: what other threads draw meanwhile would
change an adapter. Here activations that are computed again are also the same ones, without a state
of a generator to be kept.
"""

import torch
from torch import Tensor

from arcd.system.seeds import seed_of


class Dropout:
    """Sets inputs of low-rank factors to zero with a probability (JMLR 15, 1929-1958, 2014)."""

    def __init__(self, probability: float) -> None:
        """With a probability of 0 it does nothing."""
        self.probability = probability
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed = self._pass = 0

    def begin(self, seed: int) -> None:
        """A training with this seed begins."""
        self._seed, self._pass = seed, 0

    def next_pass(self) -> None:
        """A forward pass begins: it has other masks than the last one."""
        self._pass += 1

    def __call__(self, x: Tensor, place: str) -> Tensor:
        """`x` with some entries zero and the others larger, as they are at a place of the model."""
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device)
        generator = self._generators[x.device]
        generator.manual_seed(seed_of(self._seed, str(self._pass), place))
        kept = 1 - self.probability
        mask = torch.empty_like(x).bernoulli_(kept, generator=generator)
        return x * mask.div_(kept)
