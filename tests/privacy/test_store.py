"""The scrubbed store: once is enough, kills do no harm, nothing raw is on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from discreet.common.corpus import RawText
from discreet.common.errors import ConfigError
from discreet.common.site import ScrubConfig
from discreet.privacy import store as store_module
from discreet.privacy.detect import Failure, Span, refusal_of
from discreet.privacy.scrub import ScrubReport
from discreet.privacy.scrub_pool import ScrubPool
from discreet.privacy.store import ScrubbedStore, public_scrub_all

# One card and one telephone number; both are the usual invented examples.
CARD, PHONE = "4111 1111 1111 1111", "+1-202-555-0143"


class StubPool(ScrubPool):
    """Finds digits in this process; counts what it was asked; may be told to stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(1)
        self.asked: list[str] = []
        self.stop_after = stop_after

    def detect(
        self, config: ScrubConfig, chunks: Iterable[Sequence[str]]
    ) -> Iterator[list[list[Span] | Failure]]:
        for chunk in chunks:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked += chunk
            yield [self._find(text) for text in chunk]

    def _find(self, text: str) -> list[Span] | Failure:
        if "boom" in text or refusal_of(text):
            return Failure.RECOGNIZER
        return [Span(m.start(), m.end(), "PHONE_NUMBER", 1) for m in re.finditer(r"\d+", text)]


@pytest.fixture(scope="module")
def workers() -> Iterator[ScrubPool]:
    with ScrubPool(1) as pool:
        yield pool


def raw(texts: Iterable[str]) -> list[RawText]:
    return [RawText(text, f"l{row}", f"o{row}", row) for row, text in enumerate(texts)]


def content_of(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_texts_come_back_scrubbed_in_order_with_their_labels(
    tmp_path: Path, workers: ScrubPool
) -> None:
    texts = raw([f"pay with {CARD}", "nothing", f"call {PHONE} now"] * 50)
    store = ScrubbedStore(tmp_path / "store", ScrubConfig())

    scrubbed = store.scrub_all(texts, pool=workers)

    assert [text.text for text in scrubbed[:3]] == [
        "pay with <CREDIT_CARD>",
        "nothing",
        "call <PHONE_NUMBER> now",
    ]
    assert [(t.label, t.owner, t.row) for t in scrubbed] == [
        (t.label, t.owner, t.row) for t in texts
    ]


def test_the_second_time_nothing_is_searched(tmp_path: Path) -> None:
    texts = raw(["a 1", "b 22", "a 1"])
    first, second = StubPool(), StubPool()

    before = ScrubbedStore(tmp_path / "store", ScrubConfig()).scrub_all(texts, pool=first)
    after = ScrubbedStore(tmp_path / "store", ScrubConfig()).scrub_all(texts, pool=second)

    assert before == after
    assert first.asked == ["a 1", "b 22"]
    assert second.asked == []


def test_only_new_texts_are_searched_and_labels_come_from_the_corpus(tmp_path: Path) -> None:
    store = ScrubbedStore(tmp_path / "store", ScrubConfig())
    store.scrub_all(raw(["a 1", "b 2"]), pool=StubPool())
    pool, report = StubPool(), ScrubReport()

    (_, new, old) = store.scrub_all(raw(["x", "c 3", "a 1"]), pool=pool, report=report)

    assert pool.asked == ["x", "c 3"]
    assert (new.text, old.text, old.label, old.row) == (
        "c <PHONE_NUMBER>",
        "a <PHONE_NUMBER>",
        "l2",
        2,
    )
    assert report.reused == 1


@pytest.mark.parametrize(
    "change", [{"default": "mask"}, {"threshold": 0.8}, {"entities": {"URL": "keep"}}]
)
def test_a_changed_policy_scrubs_anew(tmp_path: Path, change: dict[str, object]) -> None:
    ScrubbedStore(tmp_path / "store", ScrubConfig()).scrub_all(raw(["a 1"]), pool=StubPool())
    pool = StubPool()

    changed = ScrubbedStore(tmp_path / "store", ScrubConfig.model_validate(change))
    changed.scrub_all(raw(["a 1"]), pool=pool)

    assert pool.asked == ["a 1"]


def test_a_changed_key_scrubs_anew_with_other_pseudonyms(tmp_path: Path) -> None:
    config = ScrubConfig(default="pseudonym")
    folder = tmp_path / "store"
    (one,) = ScrubbedStore(folder, config).scrub_all(raw(["555"]), pool=StubPool())
    (tmp_path / "site.key").unlink()

    (other,) = ScrubbedStore(folder, config).scrub_all(raw(["555"]), pool=StubPool())

    assert one.text != other.text


def test_dropped_and_quarantined_texts_are_left_out_counted_and_remembered(tmp_path: Path) -> None:
    config = ScrubConfig(entities={"PHONE_NUMBER": "drop"})
    texts = raw(["fine", "call 1", "boom", "half \ud83d", "fine"])
    reports = [ScrubReport(), ScrubReport()]
    pool = StubPool()

    for report in reports:
        store = ScrubbedStore(tmp_path / "store", config)
        scrubbed = store.scrub_all(texts, pool=pool, report=report)
        assert [text.row for text in scrubbed] == [0, 4]
        assert (report.num_in, report.num_out) == (5, 2)
        assert (report.dropped, report.quarantined) == (1, 2)

    assert len(pool.asked) == 4
    assert [report.reused for report in reports] == [0, 5]


def test_progress_counts_texts_and_ends_at_all_of_them(tmp_path: Path) -> None:
    store = ScrubbedStore(tmp_path / "store", ScrubConfig())
    store.scrub_all(raw(f"{n}" for n in range(100)), pool=StubPool())
    seen: list[int] = []

    texts = raw([f"{n}" for n in range(300)] * 2)
    store.scrub_all(texts, pool=StubPool(), on_progress=seen.append)

    assert seen[0] == 200
    assert seen == sorted(seen)
    assert seen[-1] == 600
    assert len(seen) > 3


def test_blocks_and_chunks_and_segments_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = raw([f"{'x' * (n % 9)} {n % 17}" for n in range(200)] + ["long " * 50_000])
    plain = ScrubbedStore(tmp_path / "a" / "store", ScrubConfig()).scrub_all(texts, pool=StubPool())
    monkeypatch.setattr(store_module, "_BLOCK_TEXTS", 33)
    monkeypatch.setattr(store_module, "_CHUNK_TEXTS", 4)
    monkeypatch.setattr(store_module, "_SEGMENT_TEXTS", 7)

    small = ScrubbedStore(tmp_path / "b" / "store", ScrubConfig()).scrub_all(texts, pool=StubPool())

    assert small == plain
    assert len(list((tmp_path / "b" / "store").iterdir())) > 5


@pytest.mark.parametrize(("num_texts", "sizes"), [(10, [10]), (40, [20, 20]), (150, [64, 64, 22])])
def test_few_texts_are_shared_out_among_the_workers(
    tmp_path: Path, num_texts: int, sizes: list[int]
) -> None:
    seen: list[int] = []
    pool = StubPool()
    pool.num_workers = 2

    store = ScrubbedStore(tmp_path / "store", ScrubConfig())
    store.scrub_all(raw(f"{n}" for n in range(num_texts)), pool=pool, on_progress=seen.append)

    assert [after - before for before, after in pairwise(seen)] == sizes


def test_no_texts_give_no_texts(tmp_path: Path) -> None:
    seen: list[int] = []

    assert ScrubbedStore(tmp_path / "s", ScrubConfig()).scrub_all([], on_progress=seen.append) == []
    assert seen == []


def test_nothing_raw_is_on_disk_and_everything_is_private(
    tmp_path: Path, workers: ScrubPool
) -> None:
    config = ScrubConfig(default="pseudonym")
    texts = raw([f"pay with {CARD}", f"call {PHONE}", "half \ud83d 555", "x" * 1_000_001])

    ScrubbedStore(tmp_path / "store", config).scrub_all(texts, pool=workers)

    stored = content_of(tmp_path / "store")
    assert all(value.encode() not in stored for value in (CARD, PHONE, "555", "xxxx"))
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    for path in [tmp_path / "site.key", *(tmp_path / "store").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_equal_texts_at_two_sites_do_not_look_alike(tmp_path: Path) -> None:
    stores = [ScrubbedStore(tmp_path / name / "store", ScrubConfig()) for name in "ab"]

    for store in stores:
        store.scrub_all(raw(["the same"]), pool=StubPool())

    keys = [store._segments().load().keys() for store in stores]
    assert keys[0].isdisjoint(keys[1])


def test_an_encrypted_store_opens_again_and_shows_nothing(tmp_path: Path) -> None:
    config = ScrubConfig(encrypt=True)
    texts = raw(["some plain words", "call 1"])
    before = ScrubbedStore(tmp_path / "store", config).scrub_all(texts, pool=StubPool())
    pool = StubPool()

    after = ScrubbedStore(tmp_path / "store", config).scrub_all(texts, pool=pool)

    assert before == after
    assert pool.asked == []
    stored = content_of(tmp_path / "store")
    assert b"plain words" not in stored
    assert b"PAR1" not in stored


def test_the_key_may_be_elsewhere(tmp_path: Path) -> None:
    ScrubbedStore(tmp_path / "fast" / "store", ScrubConfig(), state_dir=tmp_path / "state")

    assert (tmp_path / "state" / "site.key").exists()
    assert not (tmp_path / "fast" / "site.key").exists()


def test_switched_off_writes_nothing_and_the_report_says_so(tmp_path: Path) -> None:
    report = ScrubReport()
    store = ScrubbedStore(tmp_path / "store", ScrubConfig(enabled=False))

    (text,) = store.scrub_all(raw(["call 1"]), report=report)

    assert text.text == "call 1"
    assert not report.is_enabled
    assert not (tmp_path / "store").exists()


def test_an_unknown_entity_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean URL"):
        ScrubbedStore(tmp_path / "store", ScrubConfig(entities={"URLS": "mask"}))


def test_what_was_done_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    texts = raw(f"{n}" for n in range(300))
    store = ScrubbedStore(tmp_path / "store", ScrubConfig())

    with pytest.raises(KeyboardInterrupt):
        store.scrub_all(texts, pool=StubPool(stop_after=128))

    pool = StubPool()
    assert len(store.scrub_all(texts, pool=pool)) == 300
    assert len(pool.asked) == 300 - 128


def test_public_texts_keep_their_places(tmp_path: Path, workers: ScrubPool) -> None:
    texts = [f"call {PHONE}", "half \ud83d", "nothing", f"call {PHONE}"]
    config = ScrubConfig(default="drop", encrypt=True)

    scrubbed = public_scrub_all(texts, config, cache_dir=tmp_path / "cache", pool=workers)

    assert scrubbed == ["call <PHONE_NUMBER>", "", "nothing", "call <PHONE_NUMBER>"]
    assert not list(tmp_path.rglob("site.key"))


def test_public_texts_are_scrubbed_once_with_a_cache(tmp_path: Path) -> None:
    config = ScrubConfig(default="pseudonym")
    pools = [StubPool(), StubPool()]

    results = [
        public_scrub_all(["a 1"], config, cache_dir=tmp_path / "cache", pool=pool) for pool in pools
    ]

    assert results == [["a <PHONE_NUMBER>"]] * 2
    assert [pool.asked for pool in pools] == [["a 1"], []]


def test_public_texts_need_no_cache() -> None:
    pool = StubPool()

    assert public_scrub_all(["a 1"], ScrubConfig(), cache_dir=None, pool=pool) == [
        "a <PHONE_NUMBER>"
    ]


# What follows runs the store in a process of its own: it is killed, interrupted or looked at.
PROGRAM = """
import json, sys
from itertools import pairwise
from pathlib import Path
from discreet.common.corpus import RawText
from discreet.common.site import ScrubConfig
from discreet.privacy import store
from discreet.privacy.scrub import ScrubReport
store._SEGMENT_TEXTS = 64
if __name__ == "__main__":
    numbers = range(int(sys.argv[2]))
    texts = [RawText(f"customer {n} at +1-202-555-{n:04d}", None, None, n) for n in numbers]
    report = ScrubReport()
    made = store.ScrubbedStore(Path(sys.argv[1]), ScrubConfig(workers=2))
    print("ready", flush=True)
    found = made.scrub_all(texts, report=report)
    heavy = [n for n in ("presidio_analyzer", "spacy", "torch", "phonenumbers") if n in sys.modules]
    print(json.dumps({"heavy": heavy, "reused": report.reused, "texts": [t.text for t in found]}))
"""


def start(folder: Path, num_texts: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(num_texts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, object] = json.loads(out.splitlines()[-1])
    return found


def wait_for_segment(folder: Path) -> None:
    for _ in range(600):
        if folder.exists() and any(folder.glob("scrubbed-*.parquet")):
            return
        time.sleep(0.05)
    pytest.fail("no segment within 30 seconds")


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_end(pids: list[int]) -> None:
    for _ in range(200):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.05)
    pytest.fail("a worker outlived its parent by 10 seconds")


def test_kill_9_leaves_a_store_that_resumes_and_holds_nothing_raw(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    process = start(folder, 6_000)
    wait_for_segment(folder)
    children = children_of(process.pid)

    process.kill()
    process.communicate()

    wait_for_end(children)
    assert b"202-555" not in content_of(folder)
    kept = ScrubbedStore(folder, ScrubConfig())._segments().load()
    assert len(kept) >= 64
    assert all(outcome.text and "555" not in outcome.text for outcome in kept.values())

    result = result_of(start(folder, len(kept) + 100))
    assert result["reused"] == len(kept)
    texts = result["texts"]
    assert texts == [f"customer {n} at <PHONE_NUMBER>" for n in range(len(kept) + 100)]

    # And once more: all of it is there, so neither Presidio nor spaCy is loaded.
    again = result_of(start(folder, len(kept) + 100))
    assert again == {"heavy": [], "reused": len(kept) + 100, "texts": texts}


def test_ctrl_c_ends_the_workers_and_keeps_what_was_done(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    process = start(folder, 6_000)
    wait_for_segment(folder)
    children = children_of(process.pid)

    # As a terminal does: to the whole group of the parent. Workers have their own.
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert children
    assert process.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "202-555" not in err
    wait_for_end(children)
    assert not list(folder.glob(".*.part"))
    assert ScrubbedStore(folder, ScrubConfig())._segments().load()


def test_a_filled_store_answers_without_workers(tmp_path: Path) -> None:
    texts = raw(f"message number {n} of nobody to nobody" for n in range(5_500))
    store = ScrubbedStore(tmp_path / "store", ScrubConfig())
    store.scrub_all(texts, pool=StubPool())

    again = StubPool()

    scrubbed = ScrubbedStore(tmp_path / "store", ScrubConfig()).scrub_all(texts, pool=again)

    assert len(scrubbed) == 5_500
    assert again.asked == []
