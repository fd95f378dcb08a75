"""How much one engine step does at most: a pure function of the device.

Tokens of a step keep the device busy; a step that is longer than needed makes others wait, because
the engine obeys no command during a step. Knows nothing of vLLM.
"""

from dataclasses import dataclass

from arcd.model.device import AMPERE, Device

LARGE_GPU = 70 << 30
"""Bytes of memory from which a GPU is one for data centres. vLLM draws the same line."""


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The most that a step does."""

    step: int
    """Tokens of all requests together."""
    prompt: int
    """Tokens of one prompt. For an answer that is rescored vLLM holds logits and logprobs of all of
    them, without planning for them (vllm issue 5907): with a vocabulary of 150 000, two copies in
    fp32 of 512 tokens are 0.6 GB. A long prompt in one piece can take all memory of a GPU."""


def step_sizes(device: Device, memory: int | None) -> StepSizes:
    """The sizes for a device with `memory` bytes; None where that is not known, or a CPU's.

    On a CPU core 2048 tokens take 0.15 s (5M model). A GPU is busy from a few hundred tokens on
    (see `SEQUENCES`); beyond that only the fixed cost of a step counts less. With a model of 4B
    parameters, at half the 16-bit rate of the GPU, a step of these sizes takes by arithmetic 0.5 s
    on a T4 and on an L4, 0.4 s on an A100 and 0.1 s on an H100 with 80 GiB.
    """
    if device.capability is None or device.capability < AMPERE:
        return StepSizes(step=2048, prompt=512)
    if memory is None or memory < LARGE_GPU:
        return StepSizes(step=4096, prompt=512)
    return StepSizes(step=8192, prompt=2048)
