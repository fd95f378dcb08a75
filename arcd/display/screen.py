"""The live screen of a job: a pure function from its history, a moment and a size to lines.

From top to bottom: the job, its progress, its budget or forecast, what is trained and sampled now,
the recent past as a strip, notices, the last answers. Where the lines do not fit, the strip and the
answers go first, then whatever is at the bottom. Knows nothing of terminals, clocks or of where
records come from.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.text import Text

from arcd.arc.selection import Verdict
from arcd.display import grids
from arcd.display.palette import Palette
from arcd.jobs.events import Training
from arcd.jobs.history import History, Span
from arcd.jobs.state import Job, JobState, Phase, Stage

LEVELS = "▁▂▃▄▅▆▇█"
"""Characters for the values of a sparkline or bar, the lowest first."""

TASK_COLOURS = ("cyan", "magenta", "blue", "yellow", "green", "red")
"""Colours of the blocks of the strip, in turn."""

STRIDES_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
"""Seconds that a column of the strip may stand for: round numbers, to be read at a glance."""

COLUMNS_PER_TASK = 8
"""Columns of the strip that a typical task should have: a block that can be seen, with room for
several side by side."""

QUIET_AFTER_S = 15.0
"""Seconds without any record after which the screen says how long no step has completed."""

LABEL_COLUMNS = 11
"""Columns of the labels at the left, such as "training"."""

MAX_NAME_COLUMNS = 30
"""Columns of a job's name at most."""

MAX_LOSS_COLUMNS = 48
"""Columns of a training's loss curve at most."""

MIN_WORDS_COLUMNS = 44
"""Columns kept for the words behind a bar, so that all bars of a screen have the same length."""

MAX_NOTICES = 3
"""Lines of notices at most: the newest."""

MAX_TRAININGS = 4
"""Trainings side by side that are shown at most."""

MIN_ANSWER_ROWS = 3
"""Answers are drawn if they can have this many rows: a caption of two, and a part of a grid."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The daemon's forecast for the job."""

    at: float
    """When it was made, in seconds since 1970."""
    left: float
    """Seconds of work that were still to be done then."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be drawn."""

    history: History | None
    """None where there is no job."""
    palette: Palette | None
    """None where the terminal shows no colours."""
    outlook: Outlook | None = None


def draw(scene: Scene, now: float, width: int, height: int) -> RenderableType:
    """The screen at `now`, seconds since 1970, as at most `height` lines of `width` columns."""
    history = scene.history
    job = history.found if history else None
    if history is None or job is None:
        return _fitted([Text("no job yet; submit one with: arcd submit TASKS")], width, height)
    top = [
        _header(history, job, now, width),
        _progress(history, job, width),
        *_clock(scene, job, now, width),
    ]
    stages = [Text(), *_training(history, now, width), _inference(history, job, now, width)]
    strip = [Text(), *_strip(history, now, width)]
    notices = _notices(history)
    room = height - sum(map(len, (top, stages, strip, notices)))
    if room < 0:
        strip = []
    lines = [*top, *stages, *strip, *notices]
    rows = height - len(lines) - 1
    if rows >= MIN_ANSWER_ROWS and (answers := _answers(history, scene.palette, width, rows)):
        lines += [Text(), *answers]
    return _fitted(lines, width, height)


def _fitted(lines: Iterable[Text], width: int, height: int) -> Group:
    """The first `height` lines, each cut to `width` columns."""
    fitted = []
    for line in list(lines)[:height]:
        # Those of a note, say: it is one line all the same.
        line.plain = line.plain.replace("\n", " ").replace("\t", " ")
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
        fitted.append(line)
    return Group(*fitted)


def _header(history: History, job: Job, now: float, width: int) -> Text:
    """Number, name and state of the job, the device, restarts; at the right the time since."""
    state, daemon = history.state, history.state.daemon
    name = Text(job.name)
    name.truncate(MAX_NAME_COLUMNS, overflow="ellipsis")
    text = Text.assemble((f"job {job.id}", "bold"), "  ", name, "  ")
    text.append(job.state.value, _style_of(job.state))
    if daemon is not None:
        text.append(f"  {daemon.platform}", "dim")
    if daemon is not None and not state.ready and not job.finished:
        text.append("  loading the models", "yellow")
    if state.restarts:
        text.append(f"  restarted {state.restarts}x", "bold yellow")
    return _apart(text, Text(_duration(history.until(now) - job.submitted)), width)


def _style_of(state: JobState) -> str:
    match state:
        case JobState.done:
            return "green"
        case JobState.failed | JobState.cancelled:
            return "red"
        case JobState.paused:
            return "yellow"
    return "cyan"


def _progress(history: History, job: Job, width: int) -> Text:
    """How many tasks are answered, and how well."""
    done, tasks = job.counts[Phase.answered], len(job.tasks)
    tuned = sum(task.answered_by is not None for task in job.tasks.values())
    words = [f"{done}/{tasks}", f"{tuned} fine-tuned"]
    if doubtful := len(job.retriable()):
        words.append(f"{doubtful} doubtful")
    if (score := history.score()) is not None:
        words.append(f"score {score:.1%}")
    return _barred("answered", done / tasks, Text("  ".join(words)), width)


def _clock(scene: Scene, job: Job, now: float, width: int) -> list[Text]:
    """The budget: how much is used; without one, the forecast. Nothing once the job is finished."""
    if job.finished:
        return []
    left = None
    moving = job.state is not JobState.paused and not (scene.history and _still(scene.history, now))
    if scene.outlook and moving:
        left = max(0.0, scene.outlook.left - max(0.0, now - scene.outlook.at))
    if job.budget is None:
        return [_labelled("forecast", _forecast(left))]
    used = now - job.submitted
    remains = job.budget - used
    if remains < 0:
        late = Text(f"over by {_duration(-remains)} of {_duration(job.budget)}", "bold red")
        return [_barred("budget", 1.0, late, width)]
    words = f"{_duration(remains)} left of {_duration(job.budget)}"
    if left is not None:
        words += f"  {_duration(left)} of work left"
    return [_barred("budget", used / job.budget, Text(words), width)]


def _forecast(left: float | None) -> str:
    return "not known yet" if left is None else f"done in about {_duration(left)}"


def _training(history: History, now: float, width: int) -> list[Text]:
    """A line for each task in training, or "idle"."""
    state = history.state
    if not state.training:
        return [_labelled("training", ("idle", "dim"))]
    rows = [
        _trained(history, step, width) for step in list(state.training.values())[:MAX_TRAININGS]
    ]
    if still := _still(history, now):
        rows[0].append(still)
    return [_labelled("training" if not i else "", row) for i, row in enumerate(rows)]


def _trained(history: History, now: Training, width: int) -> Text:
    """A training: its task, step, loss, loss curve and speed."""
    head = f"{now.task}  step {now.step}/{now.steps}  loss {now.loss:.3f}  "
    tail = f"  {now.tokens_per_second:.0f} tok/s"
    curve = [loss for _, loss in history.losses.get(now.task, [])]
    room = min(MAX_LOSS_COLUMNS, width - LABEL_COLUMNS - len(head) - len(tail))
    text = Text(head)
    text.append(sparkline(curve, max(0, room)), "cyan")
    text.append(tail)
    return text


def _still(history: History, now: float) -> Text | None:
    """How long no record has come, if that is long."""
    quiet = now - history.at
    return (
        Text(f"  no step for {_duration(quiet)}", "bold yellow") if quiet > QUIET_AFTER_S else None
    )


def _inference(history: History, job: Job, now: float, width: int) -> Text:
    """The tasks that are sampled, as many as fit, with their samples so far, and the speed."""
    busy = [span.task for (stage, _), span in history.open.items() if stage == "infer"]
    if not busy:
        return _labelled("inference", ("idle", "dim"))
    tasks = [f"{name} {job.tasks[name].sampled}/{job.tasks[name].wanted}" for name in busy]
    rate = f"  {history.sampling_rate(now):.0f} tok/s"
    room = width - LABEL_COLUMNS - len(rate) - len("  and 999 more")
    shown = 1
    while shown < len(tasks) and len("  ".join(tasks[: shown + 1])) <= room:
        shown += 1
    more = f"  and {len(tasks) - shown} more" if shown < len(tasks) else ""
    text = _labelled("inference", "  ".join(tasks[:shown]), more, rate)
    if not history.state.training and (still := _still(history, now)):
        text.append(still)
    return text


def _strip(history: History, now: float, width: int) -> list[Text]:
    """The recent past: blocks for the trainings, bars for how many tasks were sampled at once."""
    spans, columns = history.spans(), width - LABEL_COLUMNS
    if not spans or columns < 1 or history.found is None:
        return []
    end = history.until(now)
    stride = _stride(spans, end, columns, end - history.found.submitted)
    # A multiple of the stride, so that the picture moves by whole columns.
    begin = (math.floor(end / stride) + 1 - columns) * stride
    edges = [begin + i * stride for i in range(columns + 1)]
    spans = [span for span in spans if span.end is None or span.end > begin]
    tracks = 1 + max((span.track for span in spans if span.stage == "train"), default=0)
    rows = []
    for track in range(min(tracks, MAX_TRAININGS)):
        mine = [span for span in spans if span.stage == "train" and span.track == track]
        name = "trained" if tracks == 1 else f"trained {track + 1}"
        rows.append(_labelled(name, _blocks(mine, edges, end)))
    rows.append(_labelled("sampled", _bars([s for s in spans if s.stage == "infer"], edges, end)))
    ago = f"{_duration(columns * stride)} ago"
    axis = _apart(Text(ago, "dim"), Text(f"now, {_duration(stride)} a column", "dim"), columns)
    return [*rows, _labelled("", axis)]


def _stride(spans: Sequence[Span], now: float, columns: int, age: float) -> float:
    """Seconds of a column: a typical task takes COLUMNS_PER_TASK, and a young job fills all."""
    stage: Stage = "train" if any(span.stage == "train" for span in spans) else "infer"
    lengths = sorted(s.until(now) - s.begin for s in spans if s.stage == stage)
    wanted = min(lengths[len(lengths) // 2] / COLUMNS_PER_TASK, age / columns)
    return next((stride for stride in STRIDES_S if stride >= wanted), STRIDES_S[-1])


def _blocks(spans: Sequence[Span], edges: Sequence[float], now: float) -> Text:
    """For each column the span that fills most of it; successive spans differ in shade."""
    text = Text()
    for left, right in pairwise(edges):
        shares = [(_overlap(span, left, right, now), span) for span in spans]
        share, span = max(shares, key=lambda each: each[0], default=(0.0, None))
        if span is None or share < (right - left) / 4:
            text.append("·", "dim")
        else:
            colour = TASK_COLOURS[(span.number + 2 * span.track) % len(TASK_COLOURS)]
            text.append("█▓"[span.number % 2], colour)
    return text


def _bars(spans: Sequence[Span], edges: Sequence[float], now: float) -> Text:
    """For each column the mean number of spans."""
    text = Text()
    for left, right in pairwise(edges):
        count = sum(_overlap(span, left, right, now) for span in spans) / (right - left)
        level = math.ceil(count - 0.25)
        text.append(LEVELS[min(level, len(LEVELS)) - 1] if level > 0 else "·", "green")
    return text


def _overlap(span: Span, left: float, right: float, now: float) -> float:
    """Seconds of the span between two moments."""
    return max(0.0, min(span.until(now), right) - max(span.begin, left))


def _notices(history: History) -> list[Text]:
    """The newest notices, each with its time since the submission."""
    shown = list(history.notices)[-MAX_NOTICES:]
    if not shown:
        return []
    job = history.found
    since = job.submitted if job else 0.0
    lines = [
        Text(f"{_duration(at - since):>{LABEL_COLUMNS - 2}}  {text}", "yellow")
        for at, text in shown
    ]
    return [Text(), *lines]


def _answers(history: History, palette: Palette | None, width: int, rows: int) -> list[Text]:
    """The last answers side by side, the newest first, as many as fit."""
    blocks: list[list[Text]] = []
    used = 0
    for verdict in reversed(history.answers.values()):
        block = _answer(history, verdict, palette, rows)
        wide = max(line.cell_len for line in block)
        if blocks and used + wide > width:
            break
        blocks.append(block)
        used += wide + 3
    lines = []
    for r in range(max(map(len, blocks), default=0)):
        line = Text()
        for block in blocks:
            wide = max(each.cell_len for each in block)
            part = block[r].copy() if r < len(block) else Text()
            part.pad_right(wide - part.cell_len + 3)
            line.append_text(part)
        line.rstrip()
        lines.append(line)
    return lines


def _answer(history: History, verdict: Verdict, palette: Palette | None, rows: int) -> list[Text]:
    """An answer in at most `rows` lines: its task, its votes, its first attempt at test 0."""
    best = verdict.ranked[0][0] if verdict.ranked[0] else None
    per_test = verdict.samples // len(verdict.ranked)
    votes = f"{best.count}/{per_test} votes" if best else "blank"
    head = Text.assemble(_mark(history.right.get(verdict.task)), (verdict.task, "bold"))
    lines = [head, Text(votes, "dim")]
    if best is not None:
        drawn = list(grids.small(best.grid, palette).split("\n", allow_blank=True))
        if len(drawn) > rows - len(lines):
            drawn = [*drawn[: rows - len(lines) - 1], Text("⋮", "dim")]
        lines += drawn
    return lines[:rows]


def _mark(right: float | None) -> Text:
    """Whether all, none or some of the tests are solved; empty where that is not known."""
    match right:
        case None:
            return Text()
        case 1:
            return Text("✓ ", "bold green")
        case 0:
            return Text("✗ ", "bold red")
    return Text("½ ", "bold yellow")


def sparkline(values: Sequence[float], columns: int) -> str:
    """The values as characters of LEVELS, in at most `columns`; neighbours are averaged."""
    count = min(columns, len(values))
    if not count:
        return ""
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(LEVELS) - 1
    return "".join(
        LEVELS[round((m - low) / (high - low) * top) if high > low else 0] for m in means
    )


def _labelled(label: str, *parts: str | Text | tuple[str, str]) -> Text:
    return Text.assemble((f"{label:<{LABEL_COLUMNS}}", "bold"), *parts)


def _apart(left: Text, right: Text, width: int) -> Text:
    """A line with one text at the left edge and one at the right."""
    left.truncate(max(0, width - right.cell_len - 1), overflow="ellipsis")
    left.pad_right(width - left.cell_len - right.cell_len)
    return left.append_text(right)


def _barred(label: str, share: float, words: Text, width: int) -> Text:
    """A line with a bar that is filled to a share from 0 to 1."""
    columns = max(10, min(60, width - LABEL_COLUMNS - 2 - max(MIN_WORDS_COLUMNS, words.cell_len)))
    full = round(min(1.0, max(0.0, share)) * columns)
    bar = Text.assemble(("█" * full, "green"), ("░" * (columns - full), "dim"))
    return _labelled(label, bar, "  ", words)


def _duration(seconds: float) -> str:
    """E.g. 0:07, 12:30 or 11:05:00."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
