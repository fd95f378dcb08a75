"""What a base may be trained on: composed tasks, and never an evaluation task in any form."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import small_sources
from support.small import grid, task
from support.strategies import grids, pairs, views

from arcd.arc.grids import MAX_SIDE, Grid, shape, to_grid, to_lists
from arcd.arc.tasks import Pair, TaskSet, load
from arcd.arc.views import PLAIN_COLOURS, View
from arcd.errors import BadTask
from arcd.model.encoding import CellEncoding
from arcd.model.prompts import IGNORED
from arcd.pretrain.compose import STEPS, Step, compose
from arcd.pretrain.corpus import HELD_OUT_EXAMPLES, MIN_EXAMPLES, Corpus, batch, open_corpus
from arcd.pretrain.decontamination import EvaluationSet, canonical
from arcd.system.seeds import generator

SMALL = small_sources()
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus(None, SMALL)


# The evaluation tasks.


def test_no_evaluation_task_is_in_the_real_corpus() -> None:
    corpus = open_corpus(None)
    evaluation = corpus.evaluation
    assert len(evaluation.ids) == 514  # 400 and 120, six of which are in both
    refused = set(corpus.left_out)
    assert refused - evaluation.ids == {"40853293", "caa06a1f"}
    assert len(refused & evaluation.ids) == 376  # so many are training tasks of ARC-AGI-2
    assert len(corpus.own) == 398 + 233
    assert not evaluation.ids & corpus.own.keys()
    assert not any(evaluation.has(pair) for pool in corpus.own.values() for pair in pool)


@given(st.sampled_from(sorted(SMALL.evaluation.pairs, key=str)), views())
def test_a_pair_of_an_evaluation_task_is_known_again_in_every_view(pair: Pair, view: View) -> None:
    assert SMALL.evaluation.has(view.pair(pair))


@given(pairs(max_side=5), views(), pairs(max_side=5))
def test_canonical_is_the_same_for_views_of_a_pair_and_for_nothing_else(
    pair: Pair, view: View, other: Pair
) -> None:
    assert canonical(view.pair(pair)) == canonical(pair)
    ways = (View(flip, turns, PLAIN_COLOURS, ()) for flip in (False, True) for turns in range(4))
    alike = any(_painted_alike(way.pair(pair), other) for way in ways)
    assert (canonical(other) == canonical(pair)) == alike


def _painted_alike(a: Pair, b: Pair) -> bool:
    """Whether there is a one-to-one map of colours from one to the other."""
    sides = ((a.input, b.input), (a.output, b.output))
    if any(shape(x) != shape(y) for x, y in sides):
        return False
    flat = [[cell for row in grid for cell in row] for side in sides for grid in side]
    cells = {*zip(flat[0] + flat[2], flat[1] + flat[3], strict=True)}
    return len(cells) == len({c for c, _ in cells}) == len({d for _, d in cells})


def packed(path: Path, task_id: str, *found: Pair) -> Path:
    with gzip.open(path, "wt") as file:
        json.dump({task_id: [{"input": p.input, "output": p.output} for p in found]}, file)
    return path


@pytest.mark.parametrize("name", ["arc1-eval", "arc2-eval"])
def test_a_file_with_an_evaluation_task_is_refused_whole(tmp_path: Path, name: str) -> None:
    task = load(f"{name}:1").tasks[0]
    with pytest.raises(BadTask, match=f"task {task.id}: not an ARC-AGI-1 training task"):
        open_corpus(packed(tmp_path / "a.json.gz", task.id, task.train[0]), SMALL)


def test_a_pair_of_an_evaluation_task_under_another_name_is_dropped(tmp_path: Path) -> None:
    pair = load("arc1-eval:1").tasks[0].train[0]
    turned = View(True, 3, (0, 9, 8, 7, 6, 5, 4, 3, 2, 1), ()).pair(pair)
    mine = tuple(Pair(grid(3, 4, i), grid(4, 3, i)) for i in range(MIN_EXAMPLES))
    found = open_corpus(packed(tmp_path / "a.json.gz", "007bbfb7", pair, *mine, turned), SMALL)
    assert found.generated == {"007bbfb7": mine}


def test_too_few_examples_of_a_task_are_refused(tmp_path: Path) -> None:
    pair = load("arc1-eval:1").tasks[0].train[0]
    mine = [Pair(grid(3, 4, i), grid(4, 3, i)) for i in range(MIN_EXAMPLES - 1)]
    with pytest.raises(
        BadTask, match=f"task 007bbfb7: {MIN_EXAMPLES - 1} examples, {MIN_EXAMPLES} are needed"
    ):
        open_corpus(packed(tmp_path / "a.json.gz", "007bbfb7", pair, *mine), SMALL)


def test_a_file_that_is_cut_off_or_damaged_is_refused_in_a_line(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.json.gz", "007bbfb7", *[Pair(grid(3, 4), grid(4, 3))] * 99)
    whole = path.read_bytes()
    for wrong in (whole[:40], whole[:30] + bytes(9) + whole[39:], b"{}"):
        path.write_bytes(wrong)
        with pytest.raises(BadTask, match=f"^{path}: .+$"):
            open_corpus(path, SMALL)


def test_a_training_task_that_shares_a_pair_in_another_view_is_left_out() -> None:
    pair = load("arc1-train:007bbfb7").tasks[0].train[0]
    turned = View(True, 1, (0, 9, 8, 7, 6, 5, 4, 3, 2, 1), ()).pair(pair)
    other = replace(task("else"), train=(turned,))
    secret = EvaluationSet([TaskSet("s", (other,), {})])
    found = open_corpus(None, replace(SMALL, evaluation=secret))
    assert found.left_out == ("007bbfb7",)


def test_a_composed_task_that_comes_out_as_an_evaluation_task_is_drawn_again(
    corpus: Corpus,
) -> None:
    asked: list[Pair] = []

    class Strict(EvaluationSet):
        def has(self, pair: Pair) -> bool:
            asked.append(pair)
            return len(asked) < 10

    strict = Corpus(corpus.own, {}, (), Strict([]))
    strict.lesson(generator(0), 3000)
    assert not asked
    strict.lesson(generator(0), 3000, composed=1.0)
    assert len(asked) >= 10


# Composed tasks.


@given(st.sampled_from(STEPS), SEEDS, grids(max_side=10), grids(max_side=10))
def test_a_step_makes_grids_and_forgets_nothing(
    make: Callable[[random.Random], Step], seed: int, first: Grid, second: Grid
) -> None:
    step = make(generator(seed))
    changed = step(first)
    assert to_grid(to_lists(changed)) == changed
    assert (step(second) == changed) == (second == first)


@given(SEEDS, st.lists(pairs(max_side=MAX_SIDE), min_size=1, max_size=3))
def test_one_side_of_all_pairs_is_changed_or_none(seed: int, given_pairs: list[Pair]) -> None:
    found = compose(given_pairs, generator(seed))
    assert len(found) == len(given_pairs)
    same_inputs = [p.input for p in given_pairs] == [p.input for p in found]
    same_outputs = [p.output for p in given_pairs] == [p.output for p in found]
    assert same_inputs or same_outputs
    for pair in found:
        assert max(*shape(pair.input), *shape(pair.output)) <= MAX_SIDE


def test_every_kind_of_step_is_drawn_and_changes_something() -> None:
    pair = Pair(((1, 2, 0), (3, 4, 5)), ((6, 7, 8), (9, 0, 1)))
    found = {compose([pair], generator(i)) for i in range(300)}
    assert len(found) > 100
    assert (pair,) not in found
    assert {len(each.input) for (each,) in found} >= {2, 3, 4, 6}


# Lessons and batches.


def test_a_batch_is_a_pure_function_of_seed_worker_and_step_and_keeps_its_limit(
    corpus: Corpus,
) -> None:
    def drawn(worker: int, step: int, composed: float = 0.5) -> object:
        return batch(corpus, 0, worker, step, tokens=4096, limit=2048, composed=composed)

    assert drawn(0, 7) == drawn(0, 7)
    assert drawn(0, 7) != drawn(1, 7)
    assert drawn(0, 7) != drawn(0, 8)
    assert drawn(0, 7) != drawn(0, 7, composed=0.0)
    for step in range(20):
        found = batch(corpus, 0, 0, step, tokens=4096, limit=2048)
        assert found
        assert max(len(lesson.tokens) for lesson in found) * len(found) <= 4096


def test_short_and_long_lessons_come_in_batches_of_their_own(corpus: Corpus) -> None:
    found = [batch(corpus, 0, 0, step, tokens=4096, limit=2048) for step in range(60)]
    longest = [max(len(lesson.tokens) for lesson in each) for each in found]
    assert sum(length <= 512 for length in longest) >= 20
    assert sum(length > 1024 for length in longest) >= 3
    assert sum(len(each) >= 8 for each in found) >= 20


def test_what_is_held_out_is_not_trained_on() -> None:
    kept = tuple(Pair(grid(2, 2, i), grid(1, 1, i)) for i in range(HELD_OUT_EXAMPLES))
    used = tuple(Pair(grid(3, 3, i), grid(2, 2, i)) for i in range(20))
    mine = Corpus({"a": used, "b": used}, {"a": kept + used}, (), EvaluationSet([]))
    rng = generator(0)
    for held_out, answer in ((True, 3), (False, 7)):  # tokens of a grid of 1x1, and of 2x2
        for _ in range(30):
            lesson = mine.lesson(rng, 500, held_out=held_out)
            learnt = sum(label != IGNORED for label in lesson.labels)
            assert learnt == answer * len(lesson.shown)
            assert lesson.task in ("a" if held_out else "ab")


def test_a_drawn_lesson_learns_all_outputs_but_the_first(corpus: Corpus) -> None:
    lesson = corpus.lesson(generator(0), 3000)
    learnt = [token for token in lesson.labels if token != IGNORED]
    assert learnt.count(CellEncoding.end) == len(lesson.shown)
