"""The pages: README.md and examples/*.md with what measurements.json says.

A page has a measured number only between `<!-- measured: NAME -->` and `<!-- end -->`. A block of
this NAME is made of the record of one section: the name, or what stands before its dot. Pure but
for the reading and writing of these files. Knows nothing of how things are measured.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "examples" / "measurements.json"
README_BYTES = 10240
"""Of README.md at most: one page."""

SESSION_BLOCKS = ("start", "look", "control", "answers", "end")
"""What SESSION.md shows of a session, one after the other."""

Record = Mapping[str, Any]
"""Of one section: commands, date, arcd, base, cores, machine, values."""

Records = Mapping[str, Record]

METRICS = {
    "score (pass@2)": "pass_2",
    "pass@1": "pass_1",
    "pass@n (solved by any sample)": "pass_n",
    "accuracy of the samples": "accuracy",
    "correct pixels": "correct_pixels",
    "correct size": "correct_size",
    "unanswered (samples that are no grid)": "unanswered",
}
"""The rows of a table of results, and how the command line calls them."""


# The blocks: what a page has between two markers, made of the record of a section.


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join((head, "|" + " --- |" * len(rows[0]), *body))


def setting(record: Record) -> str:
    """With what something was measured, when and where."""
    return (
        f"arcd {record['arcd']}, base {record['base']}, {record['cores']} cores "
        f"({record['machine']}), {record['date']}."
    )


def source(record: Record) -> str:
    """A paragraph: the commands that the numbers come from, and their setting."""
    commands = ", ".join(f"`{command}`" for command in record["commands"])
    return f"\n\n{commands}; {setting(record)}"


def scores(tasks: str, seconds: str) -> Callable[[Record], str]:
    """A table of results, the base alone beside test-time fine-tuning."""

    def block(record: Record) -> str:
        base, tuned = record["values"]["base"], record["values"]["tuned"]
        rows = [(label, percent(base[key]), percent(tuned[key])) for label, key in METRICS.items()]
        untold = "not measured: other work ran beside it"
        times = (f"{run['seconds']:.1f}" if "seconds" in run else untold for run in (base, tuned))
        head = (tasks, "base alone", "test-time fine-tuning")
        return table(head, *rows, (seconds, *times)) + source(record)

    return block


def quickstart_line(record: Record) -> str:
    base, tuned = record["values"]["base"], record["values"]["tuned"]
    took = f" in {tuned['seconds']:.0f} s on {record['cores']} cores" if "seconds" in tuned else ""
    return (
        f"With the defaults its score is {percent(tuned['pass_2'])} of the twelve tasks{took}; "
        f"with the base model alone {percent(base['pass_2'])}."
    )


BENCH_RUNS = {
    "cold": "a process for each step",
    "resident": "arcd, one task at a time",
    "arcd": "arcd",
}
"""The ways of a bench, and what they are called."""

SCRIPTS = {
    "peft": "transformers + peft",
    "peft_labelled": "with logits of labels alone",
    "eager": "arcd, eager",
    "compiled": "arcd, compiled",
}
"""Whose training a bench measures, and what they are called."""


def bench_table(record: Record) -> str:
    found = record["values"]
    rows = []
    for key, name in BENCH_RUNS.items():
        run, steps = found[key], found[key]["steps"]
        values = (run["wall"], run["first"], steps["trainer"], steps["engine"])
        seconds = (f"{value:.1f}" for value in values)
        rows.append((name, *seconds, f"{found.get(f'{key}_over_arcd', 1):.2f}"))
    head = (f"{found['tasks']} tasks, seconds", "wall", "first answer", "training", "sampling")
    slower, idle, cold = found["contention"], found["idle"], found["cold"]
    starts = cold["wall"] - sum(cold["steps"].values())
    sentences = (
        f"{len(found['rounds'])} rounds; each figure is their median. Starts and ends of the "
        f"separate processes take {starts:.1f} s. Overlap efficiency "
        f"{found['overlap_efficiency']:.2f}. {percent(found['outside_compute_share'])} of the time "
        f"after start-up is outside of training and engine steps. Beside the other stage, training "
        f"steps take {slower['trainer']:.2f} times as long, engine steps {slower['engine']:.2f}. "
        f"The trainer is idle for {percent(idle['trainer'])} of the time, the engine for "
        f"{percent(idle['engine'])}. Hand-over of adapters takes "
        f"{percent(found['hand_over_share']['resident'])} of a task that is solved alone."
    )
    return f"{table((*head, 'times as long'), *rows)}\n\n{sentences}{source(record)}"


def speed_table(record: Record) -> str:
    """Training alone: tokens a second, and how many times as fast arcd is."""
    found = record["values"]
    speeds, ratios = found["speeds"], found["trainer_over_peft"]
    who = [*speeds["lengths"][0]["rates"]]
    rows = [
        (f"{each['tokens']:.0f}", *(f"{each['rates'][name]:.0f}" for name in who))
        for each in speeds["lengths"]
    ]
    for other in ("peft", "peft_labelled"):
        over = found[f"trainer_over_{other}"]
        times = (f"{over[name]:.2f}" if name in ratios else "" for name in who)
        rows.append((f"times as fast as {SCRIPTS[other]}", *times))
    head = ("tokens of a lesson", *(SCRIPTS[name] for name in who))
    return table(head, *rows) + source(record)


def budget_line(record: Record) -> str:
    found = record["values"]
    return (
        f"With 90 s for {found['tasks']} tasks, {found['answered']} are answered after "
        f"{found['seconds']:.1f} s, {found['tuned']} of them with samples of a trained adapter."
    ) + source(record)


def memory_line(record: Record) -> str:
    found = record["values"]
    return (
        f"Resident memory at the end of a training is {found['after_5']:.0f} MiB after 5 tasks and "
        f"{found['after_30']:.0f} MiB after 30; the most is {found['most']:.0f} MiB. "
        f"{percent(found['outside_steps'])} of the time after start-up is outside of steps. "
        "(The base model has seen these tasks in training; the run is for memory, not for scores.)"
    ) + source(record)


SCALE = (
    ("daemon answers `/health` after its start, 100 000 tasks", "health", "s", 3),
    ("the same where no job has a snapshot yet", "first_health", "s", 3),
    ("`arcd jobs` without a daemon", "jobs", "s", 2),
    ("`arcd status` without a daemon", "status", "s", 2),
    ("`arcd result` without a daemon", "result", "s", 2),
    ("an order of 20 000 tasks, until it is accepted", "submit", "s", None),
    ("meanwhile and after it, the longest answer to `/health`", "submit_step", "s", 0.25),
    ("the largest order allowed, the daemon's most memory", "largest_order_mib", "MiB", 1024),
    ("`arcd report` of 20 000 tasks", "report", "s", 6),
    ("its memory", "report_mib", "MiB", 300),
    ("its page", "report_page_mib", "MiB", None),
    ("a live screen's look at 20 000 waiting tasks", "screen", "s", 0.01),
)
"""The rows of the table of large jobs: what, its value, its unit, the most it is meant to be."""


def scale_table(record: Record) -> str:
    rows = [
        (what, f"{record['values'][key]:.3g} {unit}", "" if most is None else f"{most} {unit}")
        for what, key, unit, most in SCALE
    ]
    return table(("with daemons of fakes", "measured", "at most"), *rows) + source(record)


def transcript(block: str) -> Callable[[Record], str]:
    return lambda record: f"```\n{record['values'][block]}\n```"


BLOCKS: dict[str, Callable[[Record], str]] = {
    "quickstart.line": quickstart_line,
    "quickstart": scores("12 tasks, 16 greedy samples for each test", "seconds in all"),
    "dev100": scores("100 tasks, 16 greedy samples for each test", "seconds a task"),
    "bench": bench_table,
    "bench.speed": speed_table,
    "budget": budget_line,
    "memory": memory_line,
    "scale": scale_table,
    "pictures": lambda record: f"Both pictures are of one run. {source(record).strip()}",
    "session": lambda record: f"This session was held with {setting(record)}",
    **{f"session.{block}": transcript(block) for block in SESSION_BLOCKS},
    "tests": lambda record: f"The gate takes {record['values']['seconds']:.0f} s." + source(record),
}


# The pages.

MARKED = re.compile(r"(<!-- measured: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md"))]


def read_records() -> Records:
    return dict(json.loads(RECORDS.read_text(encoding="utf-8")))


def keep(name: str, record: Record) -> None:
    """Write a section's record down, in the place of an earlier one."""
    records = {**read_records(), name: record}
    write(RECORDS, json.dumps(records, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def render(text: str, records: Records) -> str:
    """A page with all its measured blocks written anew; raises KeyError for an unknown name."""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        make, section = BLOCKS[name], name.partition(".")[0]
        untold = f"not measured yet: `python examples/measure.py {section}`"
        body = make(records[section]) if section in records else untold
        return f"{found[1]}{body}\n{found[3]}"

    return MARKED.sub(block, text)


def changed(records: Records) -> dict[Path, str]:
    """The pages that differ from what these records make of them, and what they make."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    made = {page: render(text, records) for page, text in texts.items()}
    return {page: text for page, text in made.items() if text != texts[page]}


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, so that it is complete whatever interrupts this."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
