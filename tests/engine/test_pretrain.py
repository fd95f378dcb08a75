"""Pretraining: the factorised tables, the exported folder, the corpus, resuming after a kill."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.corpora import small_sources

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from arcd.arc.tasks import Pair, TaskSet, load
from arcd.arc.views import PLAIN_COLOURS, View
from arcd.decoder.row import in_a_row
from arcd.errors import BadBase, BadConfig, BadTask, HomeInUse, TrainerFailed
from arcd.model.base_model import load_model, open_encoding
from arcd.model.device import Device
from arcd.model.encoding import SPECIALS, CellEncoding
from arcd.model.prompts import IGNORED, Lesson
from arcd.pretrain.cell_model import CellModel, CellTables
from arcd.pretrain.corpus import Corpus, open_corpus
from arcd.pretrain.run import Progress, Recipe, Run
from arcd.pretrain.train import pretrain
from arcd.pretrain.validation import unseen_lessons

PLAIN = View(False, 0, PLAIN_COLOURS, ())

pytestmark = pytest.mark.engine

TINY = Recipe(steps=4, width=64, layers=1, batch_tokens=1024, max_seq_len=1024, warmup=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As for the workers of a run: two threads take twenty times as long where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def corpus() -> Corpus:
    return open_corpus(None, small_sources())


def ignore(progress: Progress) -> None:
    pass


def train(
    folder: Path,
    recipe: Recipe = TINY,
    report: Callable[[Progress], None] = ignore,
    *,
    device: str = "cpu",
    every: int = 100,
    unseen: TaskSet | None = None,
) -> None:
    """A run on the small corpus."""
    pretrain(Run(folder, recipe, corpus(), device, report, every, unseen))


def final(folder: Path) -> "dict[str, torch.Tensor]":
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    weights: dict[str, torch.Tensor] = kept["model"]
    return weights


def test_the_factorised_softmax_is_the_softmax_over_the_flat_table() -> None:
    torch.manual_seed(0)
    tables = CellTables(16)
    for parameter in tables.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(40, 16)
    tokens = torch.cat([torch.arange(SPECIALS), torch.randint(SPECIALS, 9016, (24,))])
    flat = torch.log_softmax(hidden @ tables.flat().T, dim=-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(tables.logprob(hidden, tokens), flat, rtol=1e-4, atol=1e-4)


def test_the_exported_folder_is_a_stock_model_with_the_same_likelihoods(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CellModel(64, 2, 512)
    model.export(tmp_path)
    stock = load_model(tmp_path, Device("cpu", "float32"))
    grid = ((1, 2, 3), (4, 5, 6))
    encoding = open_encoding(tmp_path, "auto")
    assert isinstance(encoding, CellEncoding)
    prompt = encoding.question(grid, first=True)
    answer = encoding.answer(grid)
    tokens = torch.tensor([prompt + answer])
    labels = [IGNORED] * len(prompt) + answer
    shown = Lesson("", 0, PLAIN, (), tuple(prompt + answer), tuple(labels))
    with torch.no_grad():
        ours = model(in_a_row([shown], encoding.pad, "cpu"))
        logits = stock(tokens).logits[0, len(prompt) - 1 : -1]
    theirs = -torch.log_softmax(logits, -1).gather(-1, tokens[0, len(prompt) :, None])[:, 0]
    # The folder is in bf16, three significant digits.
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    assert all(file.stat().st_size < 16 * 2**20 for file in tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own code
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_layers_compute_the_same_for_batches_of_any_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch._dynamo.config.disable", False)
    torch.manual_seed(0)
    plain = CellModel(64, 2, 512)
    quick = CellModel(64, 2, 512, compiled=True)
    quick.load_state_dict(plain.state_dict())
    for batch, length in ((2, 64), (3, 128), (1, 192)):
        tokens = torch.randint(SPECIALS, 9016, (batch, length)).tolist()
        lessons = [Lesson("", 0, PLAIN, (), tuple(each), tuple(each)) for each in tokens]
        row = in_a_row(lessons, 0, "cpu")
        losses = [model(row) for model in (plain, quick)]
        torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)
        for model, loss in zip((plain, quick), losses, strict=True):
            model.zero_grad()
            loss.mean().backward()
        for ours, theirs in zip(plain.parameters(), quick.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            assert (ours.grad - theirs.grad).norm() <= 0.05 * ours.grad.norm()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole: list[Progress] = []
    train(tmp_path / "whole", report=whole.append, every=2)

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "cut", report=kill, every=2)
    rest: list[Progress] = []
    train(tmp_path / "cut", report=rest.append, every=2)

    assert [p.step for p in whole] == [2, 4]
    assert [p.step for p in rest] == [4]
    assert rest[-1].loss == whole[-1].loss
    assert rest[-1].tokens == whole[-1].tokens
    for name, value in final(tmp_path / "whole").items():
        assert torch.equal(value, final(tmp_path / "cut")[name])


# Torch is imported once, in a server that forks a process for each run.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["arcd.pretrain.train"])


class Killable:
    """A run in a process of its own, and the steps that it reports."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._steps, sender = SERVER.Pipe(duplex=False)
        given = (folder, recipe, corpus(), sender)
        self._process = SERVER.Process(target=train_and_send, args=given)
        self._process.start()
        sender.close()

    def steps(self) -> Iterator[int]:
        """Each step when it is reported, until the run ends."""
        with suppress(EOFError):
            while True:
                yield self._steps.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def train_and_send(folder: Path, recipe: Recipe, corpus: Corpus, steps: Connection) -> None:
    torch.set_num_threads(1)
    pretrain(Run(folder, recipe, corpus, "cpu", lambda now: steps.send(now.step), every=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    tmp_path: Path, workers: int
) -> None:
    recipe = replace(TINY, steps=6, workers=workers)
    whole = Killable(tmp_path / "whole", recipe)
    assert list(whole.steps()) == [1, 2, 3, 4, 5, 6]
    seen: list[int] = []
    for count in (1, 2, 1):
        run = Killable(tmp_path / "cut", recipe)
        # The next step is under way or being written down when the run dies.
        seen += islice(run.steps(), count)
        run.kill()
    seen += Killable(tmp_path / "cut", recipe).steps()
    assert seen[-1] == 6
    assert sorted(set(seen)) == list(dict.fromkeys(seen))
    for name, value in final(tmp_path / "whole").items():
        assert torch.equal(value, final(tmp_path / "cut")[name])


def test_what_is_never_trained_on_is_measured(tmp_path: Path) -> None:
    seen: list[Progress] = []
    tasks = load("arc1-eval:6ea4a07e,3b4c2228")
    train(tmp_path, report=seen.append, every=2, unseen=tasks)
    first, last = (progress.unseen for progress in seen)
    assert first is None
    assert last is not None
    assert last > 10  # nats for nine cells, of a model that knows next to nothing


def test_the_tests_of_a_task_are_asked_for_behind_all_its_pairs() -> None:
    (task,) = load("arc1-eval:6ea4a07e").tasks
    tasks = load("arc1-eval:6ea4a07e")
    lessons = unseen_lessons(tasks, TINY)
    assert len(lessons) == len(task.tests) == 2
    for lesson, output in zip(lessons, tasks.solutions[task.id], strict=True):
        assert lesson.shown == tuple(range(len(task.train)))
        answer = CellEncoding().answer(output)
        assert list(lesson.tokens[-len(answer) :]) == answer


def test_two_workers_average_their_gradients(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=2, workers=2)
    train(tmp_path, recipe, every=2)
    assert (tmp_path / "model" / "config.json").exists()


def test_a_run_of_another_shape_is_not_mixed_up(tmp_path: Path) -> None:
    train(tmp_path)
    more = replace(TINY, workers=2)
    for other, said in (
        (replace(more, layers=2), "layers=.*, not 2"),
        (replace(more, composed=0.0), "composed=.*, not 0.0"),
        (replace(more, seed=1), "seed=.*, not 1"),
    ):
        with pytest.raises(BadBase, match=f"was begun with {said}$"):
            train(tmp_path, other)
    with pytest.raises(BadBase, match=r"is at step 4 already, past 3$"):
        train(tmp_path, replace(TINY, steps=3))
    longer: list[Progress] = []
    train(tmp_path, replace(TINY, steps=5, lr=1e-3, workers=2), every=1)
    train(tmp_path, replace(TINY, steps=6), longer.append, every=1)
    assert [progress.step for progress in longer] == [6]


def test_what_is_no_checkpoint_is_told_in_a_line(tmp_path: Path) -> None:
    for wrong in (b"", b"junk", b"PK" + bytes(100)):
        (tmp_path / "checkpoint.pt").write_bytes(wrong)
        with pytest.raises(BadBase, match=f"^{tmp_path}/checkpoint.pt: not a checkpoint"):
            train(tmp_path)


@pytest.mark.parametrize(
    ("width", "workers", "device", "said"),
    [
        (100, 1, "cpu", "width 100: not a multiple of 64"),
        (64, 2, "cuda", "2 workers: only on a CPU"),
    ],
)
def test_an_impossible_recipe_is_refused(
    tmp_path: Path, width: int, workers: int, device: str, said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        train(tmp_path / "run", replace(TINY, width=width, workers=workers), device=device)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gradient_that_is_not_finite_ends_the_run_and_spoils_nothing(
    tmp_path: Path, workers: int
) -> None:
    train(tmp_path)
    kept = final(tmp_path)
    wild = replace(TINY, steps=12, lr=1e38, workers=workers)
    with pytest.raises(TrainerFailed, match=r"^the gradient is not finite"):
        train(tmp_path, wild, every=100)
    for name, value in final(tmp_path).items():
        assert torch.equal(value, kept[name])


def test_what_is_trained_on_is_not_unseen(tmp_path: Path) -> None:
    with pytest.raises(BadTask, match=r"arc1-train:1: task .*: is trained on"):
        train(tmp_path, unseen=load("arc1-train:1"))
    (task,) = load("arc1-train:1").tasks
    other = replace(task, id="other", train=tuple(map(turned, task.train)))
    with pytest.raises(BadTask, match="mine: task other: is trained on"):
        train(tmp_path, unseen=TaskSet("mine", (other,), {}))
    blind = replace(load("arc1-eval:1"), solutions={})
    with pytest.raises(BadTask, match="no test with a solution"):
        train(tmp_path, unseen=blind)


def turned(pair: Pair) -> Pair:
    return View(True, 1, (0, 9, 8, 7, 6, 5, 4, 3, 2, 1), ()).pair(pair)


def test_a_folder_is_trained_in_by_one_run_at_a_time(tmp_path: Path) -> None:
    seen: list[Progress] = []

    def intrude(progress: Progress) -> None:
        seen.append(progress)
        with pytest.raises(HomeInUse, match=f"{tmp_path}: in use"):
            train(tmp_path)

    train(tmp_path, report=intrude, every=4)
    assert [progress.step for progress in seen] == [4]


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = Recipe(steps=1000, warmup=100, decay=0.4)
    rates = [recipe.lr_scale(step) for step in range(1001)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:600] == [1.0] * 500
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert rates[1000] == 0.0
