"""A process that searches texts for personal data: `python -m discreet.privacy.scrub_worker`.

It is a plain child with two pipes rather than one of `multiprocessing`: it need not import
the caller's main script, it can leave torch unimported (spaCy loads it if it can: twice the
time to start and 170 MB more), and it ends by itself when its input does, so that a killed
parent leaves no orphan. It knows no key and writes nothing but spans.

A frame is the length of its content (4 bytes, big-endian) and that many bytes of JSON.
A request is {"config": settings of the scrubber, "texts": [...]}; its reply is
{"spans": [[[start, end, entity, score], ...] or a failure's name, ...]} in the same order,
or {"error": why the engine could not be made}.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import orjson

from discreet.common.site import ScrubConfig
from discreet.privacy.detect import Detector, Span, presidio_detector, search

_LENGTH_BYTES = 4

# thinc and Presidio use them where they are; the pattern recognizers never do.
_UNNEEDED_MODULES = ("cupy", "torch", "transformers")


def write_frame(stream: BinaryIO, content: bytes) -> None:
    """Write one frame and push it through."""
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame's content; none at the end of the stream, or if it ends within one."""
    header = stream.read(_LENGTH_BYTES)
    if len(header) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(header, "big")
    content = stream.read(length)
    return content if len(content) == length else None


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    detectors: dict[bytes, Detector] = {}
    while (frame := read_frame(requests)) is not None:
        request = orjson.loads(frame)
        settings = orjson.dumps(request["config"])
        try:
            if settings not in detectors:
                detectors[settings] = presidio_detector(
                    ScrubConfig.model_validate(request["config"])
                )
        except Exception as error:
            # No text was touched yet, so the message can tell what is wrong.
            reply: dict[str, object] = {"error": f"{type(error).__name__}: {error}"}
        else:
            found = (search(detectors[settings], text) for text in request["texts"])
            reply = {"spans": [_as_json(spans) for spans in found]}
        write_frame(replies, orjson.dumps(reply))


def _as_json(spans: list[Span] | str) -> list[tuple[int, int, str, float]] | str:
    if isinstance(spans, str):
        return spans
    return [(span.start, span.end, span.entity, span.score) for span in spans]


def main() -> None:
    """Serve on the process's own input and output until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _UNNEEDED_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    # A library that prints would garble the frames: its output goes nowhere.
    output = sys.stdout.fileno()
    with os.fdopen(os.dup(output), "wb") as replies, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), output)
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
