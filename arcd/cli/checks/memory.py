"""Memory: an engine whose steps get none, and adapters that come and go."""

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

LARGEST_GROWTH = {"cpu": 32 << 20, "cuda": 4 << 20}
"""Bytes by which memory may grow over the other adapters. On a CPU it is that of the process, in
which other things grow, too; on a GPU that of tensors, which is exact."""

MIB = 2**20


async def adapters_in_and_out(bench: Workbench) -> Finding:
    """Load, use and remove one adapter after the other."""
    folders = [adapter.path for adapter in await bench.adapters()]
    requests = greedy(bench.questions(task_of(MEASURED), 1, FEW_TOKENS))
    used = []
    for index in range(ADAPTERS):
        # Every serial is another adapter to the engine, also where the folder is the same.
        adapter = Adapter(bench.runtime.serial(), folders[index % len(folders)])
        await bench.sample(requests, adapter)
        used.append(bench.memory())
    return growth_finding(used, bench.device.kind)


def growth_finding(used: list[int], kind: str) -> Finding:
    """What follows from the bytes in use after each adapter."""
    grown, limit = used[-1] - used[WARM_ADAPTERS - 1], LARGEST_GROWTH[kind]
    what = "device memory" if kind == "cuda" else "the process's memory"
    value = (
        f"{len(used)} in and out: {what} grew by {grown / MIB:.1f} MiB over the last "
        f"{len(used) - WARM_ADAPTERS} (at most {limit / MIB:.0f}), to {used[-1] / MIB:.0f} MiB"
    )
    data = {"used": used, "limit": limit}
    if grown <= limit:
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
