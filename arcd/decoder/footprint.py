"""The memory that a training step takes, by arithmetic from the decoder's sizes.

It counts what autograd keeps for the backward pass on a GPU where nothing is compiled, which is the
most that a step can keep. It is a beginning: a trainer measures what its steps take. Knows nothing
of torch.
"""

from dataclasses import dataclass

FP32 = 4
"""Bytes of a number in fp32: the tensors in training, their gradients, the norms."""

STATE = 2 * FP32
"""Bytes that AdamW keeps for each number in training: two moments."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Bytes as a linear function of the tokens that go through the model together."""

    fixed: float
    token: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the steps of a training take beside the base."""

    parameters: int
    """Numbers in training."""
    plain: Linear
    """Of a step: its gradients and what it keeps for the backward pass, at their peak."""
    recomputed: Linear
    """The same if each layer keeps its input alone and computes the rest again."""

    @property
    def kept(self) -> int:
        """Bytes of the tensors in training."""
        return FP32 * self.parameters

    @property
    def lasting(self) -> int:
        """Bytes that stay from step to step: the tensors in training and the optimizer's."""
        return (FP32 + STATE) * self.parameters

    def of(self, *, recompute: bool) -> Linear:
        """The step's part, with or without activations computed again."""
        return self.recomputed if recompute else self.plain


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a decoder with an adapter."""

    layers: int
    width: int
    mlp_width: int
    heads: int
    key_heads: int
    head_size: int
    head_norms: bool
    """Whether queries and keys have norms."""
    item: int
    """Bytes of an activation."""
    rank: int
    adapted: int
    """Linear layers with an adapter in a decoder layer."""
    parameters: int
    """Numbers in training, of all layers."""
    answers: int
    """Columns of the logits."""


def footprint(sizes: Sizes) -> Footprint:
    """The footprint of steps on a decoder of these sizes.

    A layer keeps, for each token: of its two norms the fp32 input and the output; of queries and
    keys the fp32 inputs of their norms; of attention the queries, keys and values of all heads, the
    output before and after it is put together, and in fp32 a sum for each head; of the MLP gate and
    up, the gate's activation and the product; for each adapter the low-rank product. The backward
    pass needs about as much once more for the layer that it is at. Adapters are in training in
    fp32 and are copied to the number format of the activations.
    """
    s = sizes
    queries = s.heads * s.head_size
    keys = s.key_heads * s.head_size
    # Values that need not be repeated are views of queries, keys and values together.
    heads = 5 * queries if s.heads > s.key_heads else 7 * queries
    layer = (
        2 * (FP32 + s.item) * s.width
        + (FP32 * (queries + keys) if s.head_norms else 0)
        + s.item * heads
        + FP32 * s.heads
        + 4 * s.item * s.mlp_width
        + s.item * s.rank * s.adapted
    )
    inputs = 2 * s.item * s.width * s.layers
    ends = 4 * s.item * s.width + s.item * s.head_size + 3 * FP32 * s.answers + 4 * 8
    copies = s.item * s.parameters
    gradients = FP32 * s.parameters
    one_layer = (FP32 + s.item) * s.parameters / s.layers
    return Footprint(
        s.parameters,
        plain=Linear(gradients + copies + one_layer, (s.layers + 1) * layer + ends),
        recomputed=Linear(gradients + one_layer, inputs + 2 * layer + ends),
    )


def of_any(parameters: int, layers: int, width: int, mlp_width: int, item: int) -> Footprint:
    """A footprint of which only the outer sizes are known: as many heads' outputs as the width."""
    return footprint(Sizes(layers, width, mlp_width, 1, 1, width, True, item, 0, 0, parameters, 0))
