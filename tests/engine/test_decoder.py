"""The parts of arcd's own decoder, on generated inputs, against their plain definitions."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tiny_bases import BASES, Letters, distance, fill, learnt, lesson, write
from torch import Tensor
from torch.nn import functional as F

from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig
from arcd.decoder import attention, row
from arcd.decoder.answers import Cells, Rows, head
from arcd.decoder.attention import Span, attend
from arcd.decoder.dropout import Dropout
from arcd.decoder.lora import Adapted, Factors
from arcd.decoder.row import in_a_row
from arcd.model.device import Device
from arcd.model.encoding import END, NEWLINE, SPECIALS, CellEncoding
from arcd.model.prompts import IGNORED

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0, dtype: "torch.dtype" = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def gradients(value: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum in which each entry has a weight of its own."""
    weights = random(*value.shape, seed=99, dtype=value.dtype)
    found: tuple[Tensor, ...] = torch.autograd.grad((value * weights).sum(), of)
    return found


# Attention


class Elsewhere(Tensor):
    """A tensor on a CPU that says it is on a GPU."""

    @property
    def device(self) -> "torch.device":  # type: ignore[override]
        return torch.device("cuda")


def plainly(qkv: Sequence[Tensor], spans: Sequence[Span]) -> Tensor:
    """`attend` by its definition: each query's softmax over the keys before it in its lesson."""
    (q, k, v), out = qkv, []
    for begin, end in spans:
        for place in range(begin, end):
            for h in range(len(q)):
                shared = h * len(k) // len(q)
                keys, values = (x[shared, begin : place + 1] for x in (k, v))
                out.append(((keys @ q[h, place]) / math.sqrt(q.shape[-1])).softmax(0) @ values)
    return torch.stack(out).view(q.shape[1], -1)


@st.composite
def heads(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Span, ...]]:
    """Queries, keys and values in fp64, and spans that cover them."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = tuple((end - length, end) for end, length in zip(ends, lengths, strict=True))
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, seed = draw(st.integers(1, 5)), draw(st.integers(0, 10))
    # As in a layer: tokens stand first in memory.
    q, k, v = (
        random(ends[-1], n, size, seed=seed + i, dtype=torch.float64).transpose(0, 1)
        for i, n in enumerate((key_heads * group, key_heads, key_heads))
    )
    return (q, k, v), spans


@given(heads(), st.integers(1, 10), st.sampled_from(["cpu", "elsewhere"]))
def test_each_token_sees_its_lesson_up_to_itself(
    drawn: tuple[tuple[Tensor, Tensor, Tensor], tuple[Span, ...]], block: int, where: str
) -> None:
    qkv, spans = drawn
    plain = [x.detach().requires_grad_() for x in qkv]
    true = plainly(plain, spans)
    rights = gradients(true, plain)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        ours = [x.detach().to(dtype).requires_grad_() for x in qkv]
        asked = [x.as_subclass(Elsewhere) for x in ours] if where == "elsewhere" else ours
        with patch.object(attention, "BLOCK", block):
            q, k, v = asked
            found = attend(q, k, v, spans).as_subclass(Tensor)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), true, rtol=0, atol=tolerance)
            for mine, right in zip(gradients(found, ours), rights, strict=True):
                # Keys and values of shared heads are summed up in fp32.
                torch.testing.assert_close(mine.double(), right, rtol=0, atol=10 * tolerance)


def test_the_gradient_of_attention_is_that_of_small_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 3)
    q, k, v = (random(n, 7, 2, seed=n, dtype=torch.float64).requires_grad_() for n in (4, 2, 2))
    torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, [(0, 5), (5, 7)]), (q, k, v))


# Linear layers


@st.composite
def adapted(draw: st.DrawFn) -> tuple[Tensor, Adapted]:
    """An input, and a layer with factors on some of its outputs; all in fp64."""
    parts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    wide, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 10))
    factors, begin = [], 0
    for part in parts:
        rank = draw(st.integers(0, 3))
        if rank:
            a, b = (
                random(*shape, seed=seed + begin + i, dtype=torch.float64).requires_grad_()
                for i, shape in enumerate(((rank, wide), (part, rank)))
            )
            factors.append(Factors(begin, begin + part, a, b))
        begin += part
    weight = random(begin, wide, seed=seed + 50, dtype=torch.float64)
    bias = random(begin, seed=seed + 60, dtype=torch.float64) if draw(st.booleans()) else None
    x = random(tokens, wide, seed=seed + 70, dtype=torch.float64)
    x.requires_grad_(draw(st.booleans()) or not factors)
    scale = draw(st.sampled_from([0.25, 1.0, 3.0]))
    return x, Adapted(
        weight, bias, tuple(factors), scale, Dropout(draw(st.sampled_from([0.0, 1e-12])))
    )


@given(adapted())
def test_an_adapted_layer_is_the_frozen_one_and_its_factors(drawn: tuple[Tensor, Adapted]) -> None:
    x, layer = drawn
    before = [tensor.detach().clone() for each in layer.factors for tensor in (each.a, each.b)]
    weight = layer.weight.clone()
    for each in layer.factors:
        more = torch.zeros_like(weight)
        more[each.begin : each.end] = each.b @ each.a
        weight = weight + layer.scale * more
    true = x @ weight.T + (0 if layer.bias is None else layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, true)
    trained = [tensor for each in layer.factors for tensor in (each.a, each.b)]
    asked = [*trained, *([x] if x.requires_grad else [])]
    for mine, right in zip(gradients(found, asked), gradients(true, asked), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, trained, before)), "an adapter changes in the optimizer alone"


def test_dropout_keeps_the_mean_and_has_a_mask_for_each_module() -> None:
    wide, p = 500, 0.2
    one = torch.eye(wide)
    layer = Adapted(
        torch.zeros(2 * wide, wide),
        None,
        (Factors(0, wide, one, one, "q"), Factors(wide, 2 * wide, one, one, "k")),
        1.0,
        Dropout(p),
    )
    first, second = layer(torch.ones(20, wide)).chunk(2, -1)
    for kept in (first, second):
        assert set(kept.flatten().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
        assert float(kept.mean()) == pytest.approx(1, abs=0.03)
    assert float(((first > 0) & (second > 0)).float().mean()) == pytest.approx(0.64, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_that_of_its_seed_its_pass_and_its_place_alone(dtype: torch.dtype) -> None:
    x = torch.ones(20, 50, dtype=dtype)

    def masks(seed: int) -> list[list[list[float]]]:
        dropout = Dropout(0.5)
        dropout.begin(seed)
        found = []
        for _ in range(2):
            dropout.next_pass()
            found += [dropout(x, place).tolist() for place in ("q", "k", "q")]
            torch.rand(3)  # as another thread does it
        return found

    first = masks(1)
    assert first == masks(1)
    assert first[0] == first[2]
    assert all(each not in first[3:] for each in first[:3])
    assert first[0] != first[1]
    assert masks(2)[0] not in first


# The loss over answer tokens


@given(st.integers(0, 50), st.sets(st.integers(0, 29), min_size=1), st.integers(1, 5))
def test_the_rows_of_answer_tokens_are_the_softmax_without_the_others(
    seed: int, answers: set[int], count: int
) -> None:
    table, order = random(30, 6, seed=seed), torch.Generator().manual_seed(seed)
    allowed = torch.tensor(sorted(answers))[torch.randperm(len(answers), generator=order)]
    tokens = allowed[torch.randint(len(allowed), (count,), generator=order)]
    hidden = random(count, 6, seed=seed + 1).requires_grad_()
    # Other tokens have no probability.
    others = torch.full((30,), -math.inf)
    others[allowed] = 0
    true = (hidden @ table.T + others).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    found = head(table, allowed.tolist())(hidden, tokens)
    assert isinstance(head(table, allowed.tolist()), Rows)
    torch.testing.assert_close(found, true)
    torch.testing.assert_close(gradients(found, [hidden]), gradients(true, [hidden]))


def summed(seed: int, width: int = 6) -> Tensor:
    """A table of outputs whose rows for cells are sums."""
    colour, place, column = (
        random(count, width, seed=seed + count + i) + 1 for i, count in enumerate((10, 30, 30))
    )
    cells = colour[:, None, None] + place[None, :, None] + column[None, None]
    return torch.cat([random(SPECIALS, width, seed=seed), cells.flatten(0, 2)])


ALLOWED = torch.tensor(CellEncoding.answer_tokens)


@given(
    st.integers(0, 50),
    st.lists(st.sampled_from(CellEncoding.answer_tokens), min_size=1, max_size=5),
)
@example(0, [END, NEWLINE, SPECIALS, CellEncoding.vocabulary - 1])
@settings(max_examples=15)
def test_the_softmax_over_cells_factorises(seed: int, chosen: list[int]) -> None:
    table, tokens = summed(seed), torch.tensor(chosen)
    hidden = random(len(chosen), 6, seed=seed + 1).requires_grad_()
    index = (tokens[:, None] == ALLOWED).int().argmax(-1)
    true = (hidden @ table[ALLOWED].T).log_softmax(-1).gather(-1, index[:, None])[:, 0]
    factors = head(table, CellEncoding.answer_tokens)
    assert isinstance(factors, Cells)
    found = factors(hidden, tokens)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4)
    (mine,), (right,) = gradients(found, [hidden]), gradients(true, [hidden])
    torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    rounded = head(table.bfloat16(), CellEncoding.answer_tokens)
    assert isinstance(rounded, Cells), "bf16 rounds the sums"
    torch.testing.assert_close(rounded(hidden, tokens), true, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_is_no_sum_has_no_factors(dtype: "torch.dtype") -> None:
    table = summed(0).to(dtype)
    tokens = torch.tensor([END, SPECIALS, 5000])
    hidden = random(3, 6, seed=1)
    for place in (SPECIALS, 5000, CellEncoding.vocabulary - 1):
        other = table.clone()
        other[place, 3] += 0.05 * table.abs().max()
        found = head(other, CellEncoding.answer_tokens)
        assert isinstance(found, Rows)
        index = (tokens[:, None] == ALLOWED).int().argmax(-1)
        logits = F.linear(hidden, other[ALLOWED].float())
        true = logits.log_softmax(-1).gather(-1, index[:, None])[:, 0]
        torch.testing.assert_close(found(hidden.to(dtype), tokens), true, rtol=0.02, atol=0.1)


def test_a_table_of_other_tokens_is_not_taken_apart() -> None:
    table = summed(0)
    assert isinstance(head(table, CellEncoding.answer_tokens[:-1]), Rows)
    assert isinstance(head(table, [END, NEWLINE]), Rows)
    assert isinstance(head(torch.cat([table, table[:8]]), CellEncoding.answer_tokens), Rows)


# Rows


@given(st.lists(st.integers(2, 70), min_size=1, max_size=4), st.sampled_from([1, 7, 32]))
def test_a_row_has_each_lesson_and_each_label(lengths: list[int], step: int) -> None:
    lessons = [lesson(length, seed) for seed, length in enumerate(lengths)]
    with patch.object(row, "LENGTH_STEP_TOKENS", step):
        made = in_a_row(lessons, 5, "cpu")
    assert [begin for begin, _ in made.spans] == [0, *(end for _, end in made.spans[:-1])]
    assert made.spans[-1][1] == len(made.tokens) == len(made.places)
    wanted: list[int] = []
    for each, (begin, end) in zip(lessons, made.spans, strict=True):
        length = len(each.tokens)
        assert length <= end - begin < length + step
        assert (end - begin) % step == 0
        assert made.tokens[begin:end].tolist() == [*each.tokens, *[5] * (end - begin - length)]
        assert made.places[begin:end].tolist() == list(range(end - begin))
        wanted += [begin + i for i in range(length - 1) if each.labels[i + 1] != IGNORED]
    assert made.wanted.tolist() == wanted
    assert torch.equal(made.targets, made.tokens[made.wanted + 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderLora:
    base = write(BASES["qwen3"], tmp_path_factory.mktemp("base"))
    made = ResidentBase(base, Device("cpu", "float32"), Letters()).lora(TrainConfig(rank=8))
    assert isinstance(made, DecoderLora)
    fill(made)
    return made


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=3)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 79))
@settings(max_examples=15)
def test_padding_changes_neither_loss_nor_gradients(
    model: DecoderLora, lengths: list[int], step: int, pad: int
) -> None:
    lessons = [lesson(length, seed) for seed, length in enumerate(lengths)]
    with patch.object(row, "LENGTH_STEP_TOKENS", 1):
        true_loss, true = learnt(model, lessons)
    plain = in_a_row

    def padded(lessons: Sequence[object], _: int, device: str) -> row.Row:
        return plain(lessons, pad, device)  # type: ignore[arg-type]

    with (
        patch.object(row, "LENGTH_STEP_TOKENS", step),
        patch("arcd.backends.decoder_lora.in_a_row", padded),
    ):
        loss, found = learnt(model, lessons)
    assert loss == pytest.approx(true_loss, abs=1e-5)
    assert distance(found, true) < 1e-4


@given(LENGTHS)
@settings(max_examples=15)
def test_a_lesson_learns_nothing_of_its_neighbours(model: DecoderLora, lengths: list[int]) -> None:
    """A batch is the mean over all labelled tokens of what its lessons are alone."""
    lessons = [lesson(length, seed) for seed, length in enumerate(lengths)]
    counts = [sum(label != IGNORED for label in each.labels[1:]) for each in lessons]
    alone = [learnt(model, [each]) for each in lessons]
    shares = [count / sum(counts) for count in counts]
    loss, found = learnt(model, lessons)
    expected = math.fsum(share * each for share, (each, _) in zip(shares, alone, strict=True))
    assert loss == pytest.approx(expected, abs=1e-5)
    true = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
    for share, (_, each) in zip(shares, alone, strict=True):
        for name, gradient in each.items():
            true[name] += share * gradient
    assert distance(found, true) < 1e-4
