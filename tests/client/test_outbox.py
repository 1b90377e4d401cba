"""The outbox gives back what was sent for a round, and nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from discreet.client.outbox import Outbox
from discreet.common.update import Update
from discreet.common.wire import decode_tensors, encode_update, tensors_sha256
from discreet.privacy.clip import clip_update


def an_update(seed: int = 3, size: int = 4, dtype: str = "float32") -> ArrayRecord:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(3, size, generator=generator) for name in ("w", "b")}
    return encode_update(clip_update(Update(tensors), 2.0)[0], dtype=dtype)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.bin"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_kept_under_a_key_comes_back_to_the_last_bit(file: Path, dtype: str) -> None:
    arrays = an_update(dtype=dtype)
    kept = Outbox(file).save(arrays, key="plan/run/1/abc")

    loaded = Outbox(file).load(key="plan/run/1/abc")

    assert loaded is not None
    assert loaded.sha256 == kept.sha256 == tensors_sha256(arrays)
    first, second = decode_tensors(arrays), decode_tensors(loaded.arrays)
    assert all(torch.equal(first[name], second[name]) for name in ("w", "b"))


@pytest.mark.parametrize("other", ["plan/run/2/abc", "plan/run/1/abd", "", "plan/run/1/abc "])
def test_another_key_finds_nothing(file: Path, other: str) -> None:
    Outbox(file).save(an_update(), key="plan/run/1/abc")

    assert Outbox(file).load(key=other) is None


@pytest.mark.parametrize("size", [1, 4, 400])
def test_only_the_last_update_is_kept_whether_it_is_shorter_or_longer(
    file: Path, size: int
) -> None:
    outbox = Outbox(file)
    outbox.save(an_update(), key="first")
    kept = outbox.save(an_update(seed=4, size=size), key="second")

    loaded = outbox.load(key="second")

    assert outbox.load(key="first") is None
    assert loaded is not None
    assert loaded.sha256 == kept.sha256
    assert list(file.parent.iterdir()) == [file]


def test_an_outbox_that_nothing_was_put_into_is_empty_and_makes_no_folder(file: Path) -> None:
    assert Outbox(file).load(key="k") is None
    assert not file.parent.exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.99])
def test_a_torn_file_counts_as_none(file: Path, part: float) -> None:
    Outbox(file).save(an_update(), key="k")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])

    assert Outbox(file).load(key="k") is None


@pytest.mark.parametrize("part", [0.1, 0.25, 0.5, 0.9])
def test_an_update_that_was_half_written_over_the_one_before_counts_as_none(
    file: Path, part: float
) -> None:
    Outbox(file).save(an_update(seed=5), key="new")
    new = file.read_bytes()
    Outbox(file).save(an_update(seed=6), key="old")
    old = file.read_bytes()
    cut = int(part * len(new))
    file.write_bytes(new[:cut] + old[cut:])

    assert Outbox(file).load(key="new") is None
    assert Outbox(file).load(key="old") is None


@pytest.mark.parametrize("place", [0, 40, 70, 150, -1])
def test_a_file_with_one_changed_bit_counts_as_none(file: Path, place: int) -> None:
    Outbox(file).save(an_update(), key="k")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)

    assert Outbox(file).load(key="k") is None


def test_only_the_owner_may_read_it(file: Path) -> None:
    Outbox(file).save(an_update(), key="k")

    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
