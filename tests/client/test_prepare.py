"""A site's text is cleaned and scrubbed once, and what is left of it lies in a private file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from site_parts import site_of, source_of, texts, unreadable_source

from discreet.client.prepare import MIN_EXAMPLES, is_prepared, prepare
from discreet.client.source import TextSource
from discreet.common.corpus import RawText
from discreet.common.errors import DataError
from discreet.common.site import CleanConfig, Site
from discreet.privacy.scrub_pool import ScrubPool


def prepared_file(site: Site) -> Path:
    (path,) = site.scrubbed_dir.glob("prepared-*")
    return path


def test_texts_and_labels_keep_the_order_of_the_source(tmp_path: Path) -> None:
    rows = texts(6)

    prepared = prepare(site_of(tmp_path), source_of(rows))

    assert prepared.texts == [row.text for row in rows]
    assert prepared.labels == [row.label for row in rows]


def test_the_second_time_the_source_is_not_read(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    first = prepare(site, source_of(texts()))

    second = prepare(site, unreadable_source())

    assert second == first


def test_it_is_prepared_only_after_it_was(tmp_path: Path) -> None:
    site = site_of(tmp_path)

    assert not is_prepared(site, unreadable_source())
    prepare(site, source_of(texts()))
    assert is_prepared(site, unreadable_source())


def test_another_source_or_another_cleaning_is_prepared_anew(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    prepare(site, source_of(texts()))
    cut = site.model_copy(update={"clean": CleanConfig(max_chars=4)})

    assert not is_prepared(site, unreadable_source("0" * 64))
    assert not is_prepared(cut, unreadable_source())
    assert {len(text) for text in prepare(cut, source_of(texts())).texts} == {3, 4}


def test_personal_data_is_replaced_and_counted_and_the_raw_text_is_not_on_disk(
    tmp_path: Path,
) -> None:
    rows = [*texts(), RawText("call me at +44 20 7946 0958 tonight", "ham", None, 12)]
    site = site_of(tmp_path, scrub={"enabled": True, "workers": 1})

    with ScrubPool(workers=1) as pool:
        told: list[int] = []
        prepared = prepare(site, source_of(rows), pool=pool, on_progress=told.append)

    assert "<PHONE_NUMBER>" in prepared.texts[-1]
    assert prepared.entities["PHONE_NUMBER"] == 1
    assert prepared.counts["rows"] == prepared.counts["scrubbed"] == 13
    assert told[-1] == 13
    assert all(b"7946" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_second_time_nothing_is_scrubbed(tmp_path: Path) -> None:
    site = site_of(tmp_path, scrub={"enabled": True, "workers": 1})
    first = prepare(site, source_of(texts()))
    closed = ScrubPool(workers=1)
    with closed:
        pass

    second = prepare(site, unreadable_source(), pool=closed)

    assert second == first


def test_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*texts(4), *texts(4)]

    prepared = prepare(site_of(tmp_path), source_of(rows))

    assert prepared.counts == {
        "rows": 8,
        "cleaned": 4,
        "scrubbed": 4,
        "quarantined": 0,
        "dropped": 0,
    }


def test_an_encrypted_store_opens_again_and_shows_nothing(tmp_path: Path) -> None:
    site = site_of(tmp_path, scrub={"enabled": False, "encrypt": True})
    first = prepare(site, source_of(texts()))

    again = prepare(site, unreadable_source())

    assert again == first
    assert prepared_file(site).suffix == ".sealed"
    assert b"PAR1" not in prepared_file(site).read_bytes()
    assert b"number" not in prepared_file(site).read_bytes()


def test_files_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    site = site_of(tmp_path)

    prepare(site, source_of(texts()))

    assert site.state_dir.stat().st_mode & 0o777 == 0o700
    assert site.scrubbed_dir.stat().st_mode & 0o777 == 0o700
    assert prepared_file(site).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all"])
def test_a_damaged_file_is_refused_with_what_to_do(
    tmp_path: Path, encrypt: bool, damage: bytes
) -> None:
    site = site_of(tmp_path, scrub={"enabled": False, "encrypt": encrypt})
    prepare(site, source_of(texts()))
    path = prepared_file(site)
    path.write_bytes(damage)

    with pytest.raises(DataError, match="delete it") as caught:
        prepare(site, source_of(texts()))

    assert path.name in str(caught.value)


def test_a_file_with_one_changed_byte_is_never_taken_for_good(tmp_path: Path) -> None:
    site = site_of(tmp_path, scrub={"enabled": False, "encrypt": True})
    prepare(site, source_of(texts()))
    path = prepared_file(site)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match="delete it"):
        prepare(site, source_of(texts()))


@pytest.mark.parametrize("num", range(MIN_EXAMPLES))
def test_too_few_texts_are_refused_each_time_it_is_tried(tmp_path: Path, num: int) -> None:
    site = site_of(tmp_path)
    for _ in range(2):
        with pytest.raises(DataError, match=f"at least {MIN_EXAMPLES} texts.*got {num}"):
            prepare(site, source_of(texts(num)))


def test_a_site_with_too_few_texts_does_not_count_as_prepared(tmp_path: Path) -> None:
    # Else a second run would find the site ready, and fail only after all of its rounds.
    site = site_of(tmp_path)
    with pytest.raises(DataError):
        prepare(site, source_of(texts(1)))

    assert not is_prepared(site, unreadable_source())


def test_what_is_left_after_cleaning_counts_not_what_came_in(tmp_path: Path) -> None:
    same = [RawText("soup at noon", "ham", None, i) for i in range(9)]

    with pytest.raises(DataError, match="got 1"):
        prepare(site_of(tmp_path), source_of(same))


def test_a_source_that_fails_half_way_leaves_nothing_that_looks_prepared(tmp_path: Path) -> None:
    site = site_of(tmp_path)

    def read() -> Iterator[RawText]:
        yield from texts(5)
        raise OSError("the disk is gone")

    broken = TextSource("f" * 64, read)
    with pytest.raises(OSError, match="the disk is gone"):
        prepare(site, broken)

    assert not is_prepared(site, broken)
    assert list(site.state_dir.rglob("*.part")) == []
