"""What a daemon says of itself: its device by the user's name, what it is, what it waits for."""

import json
from dataclasses import replace
from pathlib import Path

from arcd.config import resolve
from arcd.daemon.kept_rates import _key
from arcd.daemon.options import Options
from arcd.daemon.phases import Loading, Platform, beat, health
from arcd.model.device import Device
from arcd.system.ledger import Ledger

L4 = Device("cuda", "bfloat16", "NVIDIA L4", (8, 9), 1)
T4 = Device("cuda", "float16", "Tesla T4", (7, 5), 1)


def test_health_names_the_device_as_the_user_does_and_what_it_is() -> None:
    options = Options(home=Path("home"), base=Path("base"), device="cuda:1")

    def told(phase: Loading) -> tuple[str, str]:
        found = health(phase, options, 0, Ledger(), stopping=False)
        return found.device, found.hardware

    assert told(Loading()) == ("cuda:1", "")
    assert told(Loading(Platform("f", L4))) == ("cuda:1", "NVIDIA L4")


def test_equal_gpus_share_their_rates_and_others_do_not() -> None:
    def key(device: Device) -> str:
        return _key(Platform("f", device), resolve())

    assert key(L4) == key(replace(L4, index=0))
    assert key(L4) != key(T4) != key(replace(T4, name="NVIDIA L4"))
    assert json.loads(key(L4))["device"] == ["cuda", "NVIDIA L4", "bfloat16"]


def test_a_beat_tells_what_loading_is_at() -> None:
    ledger = Ledger()
    with ledger.stage("engine"):
        assert beat(Loading(), ledger, stopping=False).loading == "engine"
