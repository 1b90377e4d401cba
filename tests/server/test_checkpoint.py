"""A run on disk: whole after a kill at any point, and damage is never passed over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from discreet.common.errors import ConfigError, DataError
from discreet.common.update import Weights
from discreet.server.checkpoint import (
    Checkpoint,
    check_resumable,
    load_checkpoint,
    save_checkpoint,
)
from discreet.server.history import LabelScores, RoundRecord, SiteRecord

RECORD = RoundRecord(
    round=1,
    sites_asked=3,
    sites=1,
    epsilon_max=0.5,
    seconds=1.25,
    bytes_up=400,
    bytes_down=1200,
    refused={"north": "budget"},
    failed={"east": "no_reply"},
    loss=0.3,
    accuracy=0.9,
    precision=0.8,
    recall=0.7,
    f1=0.74,
    classes=(LabelScores("ham", 0.9, 0.8, 0.85, 10),),
)


def _checkpoint(round_number: int) -> Checkpoint:
    return Checkpoint(
        run="run-1",
        plan_fingerprint="a" * 64,
        round=round_number,
        weights=Weights({"w": torch.full((4, 3), float(round_number)), "b": torch.ones(2)}),
        optimizer_state={"momentum/w": torch.full((4, 3), 0.5)},
        records=tuple(replace(RECORD, round=n) for n in range(1, round_number + 1)),
        sites={"north": SiteRecord("north", 2, (1, 2), "budget", 3)},
        started="2026-01-02T03:04:05+00:00",
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = _checkpoint(2)

    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)

    assert loaded is not None
    assert torch.equal(loaded.weights["w"], saved.weights["w"])
    assert torch.equal(loaded.optimizer_state["momentum/w"], saved.optimizer_state["momentum/w"])
    assert replace(loaded, weights=saved.weights, optimizer_state=saved.optimizer_state) == saved


def test_bfloat16_weights_come_back_as_they_were(tmp_path: Path) -> None:
    weights = Weights({"w": torch.randn(5).bfloat16()})

    save_checkpoint(tmp_path, replace(_checkpoint(1), weights=weights))
    loaded = load_checkpoint(tmp_path)

    assert loaded is not None
    assert torch.equal(loaded.weights["w"], weights["w"])


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_the_last_two_rounds_stay_on_disk(tmp_path: Path) -> None:
    for number in range(5):
        save_checkpoint(tmp_path, _checkpoint(number))

    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())

    assert [name for name in names if name.endswith(".json")] == [
        "round-000003.json",
        "round-000004.json",
    ]
    assert sum(name.endswith(".safetensors") for name in names) == 2
    assert len(names) == 4


def test_a_round_written_again_leaves_one_set_of_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    other = replace(_checkpoint(1), weights=Weights({"w": torch.zeros(1)}))

    save_checkpoint(tmp_path, other)
    loaded = load_checkpoint(tmp_path)

    assert loaded is not None
    assert list(loaded.weights) == ["w"]
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_tensors_stop_the_program(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    save_checkpoint(tmp_path, _checkpoint(2))
    path = next((tmp_path / "checkpoint").glob("round-000002-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])

    with pytest.raises(DataError, match=r"delete round-000002\.json to go on"):
        load_checkpoint(tmp_path)


def test_the_round_before_is_whole_once_a_damaged_one_is_deleted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    save_checkpoint(tmp_path, _checkpoint(2))

    (tmp_path / "checkpoint" / "round-000002.json").unlink()
    loaded = load_checkpoint(tmp_path)

    assert loaded is not None
    assert loaded.round == 1


def test_a_damaged_state_names_the_field(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    path = tmp_path / "checkpoint" / "round-000001.json"
    path.write_bytes(path.read_bytes().replace(b'"round": 1', b'"round": "one"', 1))

    with pytest.raises(DataError, match="round"):
        load_checkpoint(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(1))
    path = tmp_path / "checkpoint" / "round-000001.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2', 1))

    with pytest.raises(DataError, match="schema must be 1, got 2"):
        load_checkpoint(tmp_path)


def test_resuming_with_another_plan_is_refused(tmp_path: Path) -> None:
    check_resumable(_checkpoint(1), "a" * 64, tmp_path)

    with pytest.raises(ConfigError, match="fingerprint aaaaaaaaaaaa, got bbbbbbbbbbbb"):
        check_resumable(_checkpoint(1), "b" * 64, tmp_path)


WRITER = """
import sys
from pathlib import Path
import torch
from discreet.common.update import Weights
from discreet.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

run_dir = Path(sys.argv[1])
last = load_checkpoint(run_dir)
number = last.round if last else 0
print("ready", flush=True)
while True:
    number += 1
    weights = Weights({"w": torch.full((200_000,), float(number))})
    save_checkpoint(run_dir, Checkpoint("r", "f", number, weights, {}, (), {}, ""))
    print(number, flush=True)
"""


def test_a_kill_at_any_point_leaves_the_last_whole_round(tmp_path: Path) -> None:
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        first = writer.stdout.readline()

        time.sleep(0.05 + 0.037 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        told = (first + writer.stdout.read()).split()
        writer.wait()
        writer.stdout.close()
        loaded = load_checkpoint(tmp_path)

        assert loaded is not None
        # At most the round that was on its way out when the kill came is not told yet.
        assert loaded.round - int(told[-1]) in (0, 1)
        assert torch.equal(loaded.weights["w"], torch.full((200_000,), float(loaded.round)))
