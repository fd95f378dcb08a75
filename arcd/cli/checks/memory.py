"""Memory: an engine whose steps get none, and adapters that come and go."""

from collections.abc import Mapping, Sequence

from arcd.backends.protocols import Adapter, Request
from arcd.cli.checks.workbench import MEASURED, Workbench, greedy, task_of
from arcd.cli.finding import Finding
from arcd.errors import ArcdError, EngineFailed, SampleRefused
from arcd.model.prompts import Lesson, Question

ADAPTERS = 20
"""Adapters that go in and out of the engine."""

WARM_ADAPTERS = 5
"""The first of them, after which memory is to stay as it is."""

FEW_TOKENS = 4
"""Of each answer with one of them."""

PRESSED = 16
"""Sequences without memory: their prompts are read in one batch."""

LARGEST_GROWTH = {"process": 32 << 20, "tensors": 4 << 20}
"""Bytes by which memory may grow over the other adapters. In the process other things grow, too;
tensors on a GPU are counted exactly. The engine has adapters in both: its cache is in RAM."""

SHOWN = {"process": "the process's memory", "tensors": "device memory"}

MIB = 2**20


async def adapters_in_and_out(bench: Workbench) -> Finding:
    """Load, use and remove one adapter after the other."""
    folders = [adapter.path for adapter in await bench.adapters()]
    requests = greedy(bench.questions(task_of(MEASURED), 1, FEW_TOKENS))
    used: dict[str, list[int]] = {}
    for index in range(ADAPTERS):
        # Every serial is another adapter to the engine, also where the folder is the same.
        adapter = Adapter(bench.runtime.serial(), folders[index % len(folders)])
        await bench.sample(requests, adapter)
        for place, size in bench.memory().items():
            used.setdefault(place, []).append(size)
    return growth_finding(used)


def growth_finding(used: Mapping[str, Sequence[int]]) -> Finding:
    """What follows from the bytes in use after each adapter, by the place of LARGEST_GROWTH."""
    grown = {place: sizes[-1] - sizes[WARM_ADAPTERS - 1] for place, sizes in used.items()}
    told = ", ".join(
        f"{SHOWN[place]} by {grown[place] / MIB:.1f} MiB (at most "
        f"{LARGEST_GROWTH[place] / MIB:.0f}), to {sizes[-1] / MIB:.0f} MiB"
        for place, sizes in used.items()
    )
    value = f"{ADAPTERS} in and out; over the last {ADAPTERS - WARM_ADAPTERS} grew {told}"
    data = {"used": {place: list(sizes) for place, sizes in used.items()}, "grown": grown}
    if all(growth <= LARGEST_GROWTH[place] for place, growth in grown.items()):
        return Finding("adapters", value, data=data)
    advice = "a run of many tasks may end without memory: report this document"
    return Finding("adapters", value, ok=False, advice=advice, data=data)


async def out_of_memory(bench: Workbench) -> Finding:
    """Sample, sample without memory, sample again: the last must succeed."""
    adapter, _ = await bench.adapters()
    requests = _hungry(bench)
    before = await bench.sample(requests, adapter)
    fallen = bench.fallbacks()
    refused: ArcdError | None = None
    with bench.pressure() as how:
        try:
            await bench.sample(requests, adapter)
        except (SampleRefused, EngineFailed) as error:
            refused = error
    fallen = bench.fallbacks() - fallen
    told = f"sampling succeeded after {fallen} fall-backs"
    if refused is not None:
        told = f"refused ({refused})"
    tried = refused is not None or fallen > 0
    try:
        after = await bench.sample(requests, adapter)
    except (SampleRefused, EngineFailed) as error:
        advice = (
            "the engine does not survive a full device, so the daemon is started again then: "
            "leave it more room with a smaller --set engine.gpu_memory, and report this document"
        )
        value = f"{how}: {told}; the retry failed: {error}"
        data = {"tried": tried, "fallbacks": fallen}
        return Finding("out of memory", value, ok=False, advice=advice, data=data)
    same = sum(before[each].tokens == after[each].tokens for each in before)
    data = {"same": same, "of": len(before), "tried": tried, "fallbacks": fallen}
    value = f"{how}: {told}; the retry succeeded, {same} of {len(before)} answers as before"
    if not tried:
        # All that its steps use may have been there since the start: a full device proves nothing.
        value = f"not tried: the engine needed no memory ({how})"
    return Finding("out of memory", value, data=data)


def _hungry(bench: Workbench) -> list[Request]:
    """Prompts that are read in one batch, and a given answer: its logprobs take memory at once."""
    task = task_of(MEASURED)
    sampled = greedy(bench.questions(task, PRESSED, FEW_TOKENS))
    lesson: Lesson = bench.lessons(task, 1)[0]
    question = Question(task.id, 0, lesson.view, lesson.shown, lesson.tokens[:1], 1)
    limit = bench.config.engine.max_model_len - 1
    given = Request(question, len(sampled), seed=0, answer=lesson.tokens[1:limit])
    return [*sampled, given]
