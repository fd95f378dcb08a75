"""Which GPU a process sees: one at most, whatever is set already, and however often it is asked."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.errors import BadConfig
from arcd.system.visible_gpus import (
    BY_BUS,
    NARROWED,
    ORDER,
    VISIBLE,
    gpu_index,
    narrow,
    narrowing,
    visible,
)

numbers = st.integers(0, 15).map(str)
uuids = st.uuids().map(lambda uuid: f"GPU-{uuid}")
parts = st.uuids().map(lambda uuid: f"MIG-{uuid}")
lists = st.one_of(
    *(st.lists(each, min_size=1, max_size=8, unique=True) for each in (numbers, uuids, parts))
)
devices = st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:7"])


@pytest.mark.parametrize(
    ("device", "index"),
    [("cpu", None), ("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:12", 12)],
)
def test_a_device_names_a_gpu_by_its_number(device: str, index: int | None) -> None:
    assert gpu_index(device) == index


@given(st.text() | st.sampled_from(["tpu", "cuda:", "cuda:-1", "cuda:01", "cuda:١", "cuda:1 ", ""]))
def test_what_is_no_device_is_refused_in_one_line(device: str) -> None:
    if device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", device):
        return
    with pytest.raises(BadConfig) as caught:
        narrowing(device, {})
    assert str(caught.value) == f"device {device!r}: expected auto, cpu, cuda or cuda:N"


@given(lists, st.integers(0, 7))
def test_the_number_counts_within_what_is_visible_already(shown: list[str], index: int) -> None:
    before = {VISIBLE: ",".join(shown)}
    if index < len(shown):
        assert narrowing(f"cuda:{index}", before)[VISIBLE] == shown[index]
    elif index:
        with pytest.raises(BadConfig, match=rf"shows {len(shown)} GPUs"):
            narrowing(f"cuda:{index}", before)


@given(lists | st.none(), devices)
def test_a_process_sees_one_gpu_at_most_and_its_children_the_same(
    shown: list[str] | None, device: str
) -> None:
    environment = {} if shown is None else {VISIBLE: ",".join(shown)}
    try:
        narrow(device, environment)
    except BadConfig:
        return
    if device == "cpu":
        assert NARROWED not in environment
        return
    assert len(visible(environment[VISIBLE])) == 1
    once = dict(environment)
    narrow(device, environment)
    assert environment == once
    narrow("cuda", environment)
    assert environment[VISIBLE] == once[VISIBLE]


@pytest.mark.parametrize("device", ["cuda:1", "auto"])
def test_where_nothing_is_set_gpus_are_numbered_as_nvidia_smi_numbers_them(device: str) -> None:
    found = narrowing(device, {})
    assert found[VISIBLE] == ("1" if device == "cuda:1" else "0")
    assert found[ORDER] == BY_BUS
    assert narrowing(device, {ORDER: "FASTEST_FIRST"})[ORDER] == "FASTEST_FIRST"
    assert ORDER not in narrowing(device, {VISIBLE: "3,5"}), "the user has counted in it"


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "none,0", "-1,0"])
def test_gpus_that_somebody_has_hidden_stay_hidden(hidden: str) -> None:
    assert visible(hidden) == []
    assert narrowing("auto", {VISIBLE: hidden}) == narrowing("cuda", {VISIBLE: hidden}) == {}
    with pytest.raises(BadConfig, match="shows 0 GPUs"):
        narrowing("cuda:1", {VISIBLE: hidden})


def test_like_cuda_nothing_behind_an_entry_that_is_no_gpu_counts() -> None:
    assert visible("3, 5 ,-1,7") == ["3", "5"]


def test_a_user_who_shows_other_gpus_to_a_child_is_obeyed() -> None:
    environment = {VISIBLE: "3,5"}
    narrow("cuda:1", environment)
    assert environment[VISIBLE] == "5"
    environment[VISIBLE] = "6,7"
    narrow("cuda:1", environment)
    assert environment[VISIBLE] == "7"
