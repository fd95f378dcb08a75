"""How often the base is in memory: once, where the trainer can use the engine's tensors.

The engine's tensors must be plain and hold the folder's values (`decoder.sharing`), and both sides
must then give tokens the same probabilities. Otherwise the trainer loads a copy of its own.
"""

from anyio import to_thread

from arcd.arc.grids import Grid
from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.device_errors import sticky
from arcd.backends.protocols import Completion, Request
from arcd.backends.resident_base import ResidentBase
from arcd.backends.vllm.engine import VllmEngine
from arcd.errors import SampleRefused, in_one_line
from arcd.model.encoding import Encoding
from arcd.model.prompts import Question

TOLERANCE = 0.1
"""Mean difference of logprobs, in nats, below which trainer and engine hold the same model. Between
kernels in 16 bits it is about 0.01; one projection in another order makes it several nats."""

GRID: Grid = ((0, 1, 2), (3, 4, 5), (6, 7, 8))
"""A grid that is shown and asked for."""


async def load(resident: ResidentBase, engine: VllmEngine, encoding: Encoding) -> str | None:
    """Load the resident base; why it is in memory twice, None if it is there once."""
    reason = await to_thread.run_sync(resident.load, engine.base_tensors)
    if reason is None:
        reason = await _disagreement(resident, engine, encoding)
        if reason is not None:
            await to_thread.run_sync(resident.load)
    return reason


async def _disagreement(
    resident: ResidentBase, engine: VllmEngine, encoding: Encoding
) -> str | None:
    """Why one copy is not trusted; None if both sides agree."""
    try:
        difference = await _difference(resident, engine, encoding)
    except (SampleRefused, RuntimeError) as error:
        if sticky(error):
            raise
        return f"one copy could not be compared: {in_one_line(str(error))}"
    if difference < TOLERANCE:
        return None
    return f"trainer and engine differ by {difference:.2f} nats a token on one copy"


async def _difference(resident: ResidentBase, engine: VllmEngine, encoding: Encoding) -> float:
    """Mean absolute difference in nats of an answer's logprobs, trainer against engine."""
    prompt, answer = encoding.question(GRID, first=True), tuple(encoding.answer(GRID))
    view = View(flip=False, turns=0, colours=PLAIN_COLOURS, order=())
    question = Question("", 0, view, (), tuple(prompt), len(answer))
    found: list[Completion] = []
    await engine.sample([Request(question, 0, 0, answer=answer)], None, found.append)
    engine.usage()  # of a first step, which says nothing about later ones
    trained = await to_thread.run_sync(resident.logprobs, (*prompt, *answer), len(answer))
    served = trained.new_tensor(found[0].logprobs)
    return float((trained - served).abs().mean())
