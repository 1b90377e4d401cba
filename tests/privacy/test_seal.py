"""The site's key and private files."""

from __future__ import annotations

import multiprocessing.pool
import os
import stat
from pathlib import Path

import pytest

from discreet.common.errors import DataError
from discreet.privacy.seal import (
    derived_key,
    private_folder,
    seal,
    site_key,
    unseal,
    write_private,
)

KEY = bytes(range(32))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    state = tmp_path / "site" / "state"

    key = site_key(state)

    assert len(key) == 32
    assert site_key(state) == key
    assert mode_of(state) == 0o700
    assert mode_of(state / "site.key") == 0o600
    assert [path.name for path in state.iterdir()] == ["site.key"]


def test_two_sites_have_two_keys(tmp_path: Path) -> None:
    assert site_key(tmp_path / "a") != site_key(tmp_path / "b")


def test_many_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with multiprocessing.pool.ThreadPool(8) as pool:
        keys = pool.map(site_key, [tmp_path] * 32)

    assert len(set(keys)) == 1


def test_a_key_that_another_process_made_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = site_key(tmp_path / "other")
    link = os.link

    def too_late(source: Path, target: Path) -> None:
        write_private(target, theirs)
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)

    assert site_key(tmp_path) == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "site.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    site_key(tmp_path)
    (tmp_path / "site.key").chmod(mode)

    with pytest.raises(DataError, match="chmod 600"):
        site_key(tmp_path)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_file_that_is_not_a_key_is_refused_and_not_shown(tmp_path: Path, length: int) -> None:
    write_private(tmp_path / "site.key", b"k" * length)

    with pytest.raises(DataError, match=f"must hold 32 bytes, got {length}:") as caught:
        site_key(tmp_path)

    assert "kkk" not in str(caught.value)


def test_derived_keys_differ_by_purpose_and_key() -> None:
    keys = {KEY, derived_key(KEY, "a"), derived_key(KEY, "b"), derived_key(bytes(32), "a")}

    assert {len(key) for key in keys} == {32}
    assert len(keys) == 4


def test_a_private_folder_closes_one_that_was_open(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)

    private_folder(folder)

    assert mode_of(folder) == 0o700


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")

    with pytest.raises(DataError, match="must be a folder of this user"):
        private_folder(tmp_path / "store")


def test_a_private_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_private(path, b"new")

    assert path.read_bytes() == b"old"
    assert mode_of(path) == 0o600


def test_a_write_that_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)

    with pytest.raises(KeyboardInterrupt):
        write_private(tmp_path / "file", b"scrubbed text")

    assert list(tmp_path.iterdir()) == []


def test_sealed_content_opens_with_its_key_and_name() -> None:
    sealed = seal(b"content", key=KEY, name="a")

    assert b"content" not in sealed
    assert unseal(sealed, key=KEY, name="a") == b"content"
    assert seal(b"content", key=KEY, name="a") != sealed


@pytest.mark.parametrize("change", ["bit", "cut", "empty", "name", "key"])
def test_sealed_content_that_was_changed_does_not_open(change: str) -> None:
    sealed = seal(b"content", key=KEY, name="a")
    contents = {"bit": bytes([sealed[0] ^ 1]) + sealed[1:], "cut": sealed[:-1], "empty": b""}

    with pytest.raises(DataError, match="delete it"):
        unseal(
            contents.get(change, sealed),
            key=bytes(32) if change == "key" else KEY,
            name="b" if change == "name" else "a",
        )
