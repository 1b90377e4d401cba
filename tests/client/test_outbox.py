"""The outbox gives back what was sent for a round, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from discreet.client.outbox import Outbox
from discreet.common.errors import DiscreetError, NonFiniteUpdateError
from discreet.common.update import ClippedUpdate, Update
from discreet.privacy.clip import UnclippedUpdateError, clip_update

BOUND = 2.0


def an_update() -> ClippedUpdate:
    generator = torch.Generator().manual_seed(3)
    tensors = {"w": torch.randn(3, 4, generator=generator), "b": torch.randn(4)}
    return clip_update(Update(tensors), BOUND)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.safetensors"


def test_what_was_kept_under_a_key_comes_back_to_the_last_bit(file: Path) -> None:
    update = an_update()
    Outbox(file).save(update, key="plan/run/1/abc")

    loaded = Outbox(file).load(key="plan/run/1/abc", clipping_norm=BOUND)

    assert loaded is not None
    assert loaded.keys() == update.keys()
    assert all(torch.equal(loaded[name], update[name]) for name in update)


def test_a_tensor_that_is_not_contiguous_is_kept_as_its_values(file: Path) -> None:
    update = ClippedUpdate({"w": torch.arange(6.0).reshape(2, 3).t() / 10})
    Outbox(file).save(update, key="k")

    loaded = Outbox(file).load(key="k", clipping_norm=BOUND)

    assert loaded is not None
    assert torch.equal(loaded["w"], update["w"])


@pytest.mark.parametrize("other", ["plan/run/2/abc", "plan/run/1/abd", "", "plan/run/1/abc "])
def test_another_key_finds_nothing(file: Path, other: str) -> None:
    Outbox(file).save(an_update(), key="plan/run/1/abc")

    assert Outbox(file).load(key=other, clipping_norm=BOUND) is None


def test_only_the_last_update_is_kept(file: Path) -> None:
    outbox = Outbox(file)
    outbox.save(an_update(), key="first")
    outbox.save(an_update(), key="second")

    assert outbox.load(key="first", clipping_norm=BOUND) is None
    assert outbox.load(key="second", clipping_norm=BOUND) is not None
    assert list(file.parent.iterdir()) == [file]


def test_an_outbox_that_nothing_was_put_into_is_empty_and_makes_no_folder(file: Path) -> None:
    assert Outbox(file).load(key="k", clipping_norm=BOUND) is None
    assert not file.parent.exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_file_counts_as_none(file: Path, part: float) -> None:
    Outbox(file).save(an_update(), key="k")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])

    assert Outbox(file).load(key="k", clipping_norm=BOUND) is None


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_file_with_one_changed_bit_counts_as_none(file: Path, place: int) -> None:
    Outbox(file).save(an_update(), key="k")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)

    assert Outbox(file).load(key="k", clipping_norm=BOUND) is None


def test_an_update_longer_than_the_bound_is_refused(file: Path) -> None:
    # As whoever tampers with the file and knows how to make its hash would leave it.
    Outbox(file).save(ClippedUpdate({"w": torch.full((3,), 10.0)}), key="k")

    with pytest.raises(UnclippedUpdateError) as caught:
        Outbox(file).load(key="k", clipping_norm=BOUND)

    assert isinstance(caught.value, DiscreetError)


def test_an_update_of_nan_is_refused(file: Path) -> None:
    Outbox(file).save(ClippedUpdate({"w": torch.tensor([float("nan")])}), key="k")

    with pytest.raises(NonFiniteUpdateError):
        Outbox(file).load(key="k", clipping_norm=BOUND)


def test_a_bound_that_is_now_smaller_refuses_what_was_kept_under_a_larger(file: Path) -> None:
    Outbox(file).save(ClippedUpdate({"w": torch.tensor([1.5])}), key="k")

    with pytest.raises(UnclippedUpdateError):
        Outbox(file).load(key="k", clipping_norm=1.0)


def test_only_the_owner_may_read_it(file: Path) -> None:
    Outbox(file).save(an_update(), key="k")

    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
