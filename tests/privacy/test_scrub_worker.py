"""The worker's protocol, driven in this process."""

from __future__ import annotations

import io
import re
import runpy
import signal
import sys
from pathlib import Path
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.site import ScrubConfig
from discreet.privacy import scrub_worker
from discreet.privacy.detect import Span
from discreet.privacy.scrub_worker import main, read_frame, serve, write_frame


class DigitDetector:
    """Finds runs of digits."""

    version = "digits 1"
    entities = ("DIGITS",)

    def detect(self, text: str) -> list[Span]:
        if "boom" in text:
            raise RuntimeError(text)
        return [Span(m.start(), m.end(), "DIGITS", 0.5) for m in re.finditer(r"\d+", text)]


def ask(*requests: object) -> list[dict[str, object]]:
    source, sink = io.BytesIO(), io.BytesIO()
    for request in requests:
        write_frame(source, orjson.dumps(request))
    source.seek(0)
    serve(source, sink)
    sink.seek(0)
    replies = []
    while (frame := read_frame(sink)) is not None:
        replies.append(orjson.loads(frame))
    return replies


@given(contents=st.lists(st.binary(max_size=300), max_size=5))
def test_frames_come_out_as_they_went_in(contents: list[bytes]) -> None:
    stream = io.BytesIO()
    for content in contents:
        write_frame(stream, content)
    stream.seek(0)

    assert [read_frame(stream) for _ in contents] == contents
    assert read_frame(stream) is None


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_stream_that_ends_within_a_frame_has_ended(cut: int) -> None:
    stream = io.BytesIO()
    write_frame(stream, b"content")

    assert read_frame(io.BytesIO(stream.getvalue()[:cut])) is None


def test_each_text_gets_its_spans_or_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(config: ScrubConfig) -> DigitDetector:
        made.append(config)
        return DigitDetector()

    monkeypatch.setattr(scrub_worker, "presidio_detector", make)
    config = ScrubConfig().model_dump(mode="json")

    replies = ask(
        {"config": config, "texts": []},
        {"config": config, "texts": ["a 12", "boom", "none"]},
    )

    assert replies == [
        {"spans": []},
        {"spans": [[[2, 4, "DIGITS", 0.5]], "a recognizer failed", []]},
    ]
    assert len(made) == 1


def test_an_engine_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: ScrubConfig) -> DigitDetector:
        raise ImportError("no such library")

    monkeypatch.setattr(scrub_worker, "presidio_detector", fail)

    (reply,) = ask({"config": ScrubConfig().model_dump(mode="json"), "texts": ["secret"]})

    assert reply == {"error": "ImportError: no such library"}


def test_main_answers_on_its_own_output_and_mutes_everybody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(config: ScrubConfig) -> DigitDetector:
        print("a library that talks")  # noqa: T201
        return DigitDetector()

    monkeypatch.setattr(scrub_worker, "presidio_detector", make)
    requests = io.BytesIO()
    write_frame(
        requests, orjson.dumps({"config": ScrubConfig().model_dump(mode="json"), "texts": ["7"]})
    )
    requests.seek(0)
    before = signal.getsignal(signal.SIGINT)

    with (tmp_path / "out").open("w") as out, mock.patch.dict(sys.modules):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(requests))
        monkeypatch.setattr(sys, "stdout", out)
        try:
            main()
            is_deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            has_no_torch = sys.modules["torch"] is None
        finally:
            signal.signal(signal.SIGINT, before)

    with (tmp_path / "out").open("rb") as replies:
        frame = read_frame(replies)
        assert frame is not None
        assert orjson.loads(frame) == {"spans": [[[0, 1, "DIGITS", 0.5]]]}
        assert replies.read() == b""
    assert is_deaf
    assert has_no_torch


def test_the_module_runs_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    with (tmp_path / "out").open("w") as out, mock.patch.dict(sys.modules):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.setattr(sys, "stdout", out)
        try:
            runpy.run_path(scrub_worker.__file__, run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, before)

    assert (tmp_path / "out").read_bytes() == b""
