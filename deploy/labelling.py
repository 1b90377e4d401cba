"""`discreet predict`: texts in, one line with a label out for each, in the same order.

Nothing is dropped or joined, so that line 7 of the output belongs to text 7 of the input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import orjson

from discreet.common.errors import DataError

_TEXTS_AT_ONCE = 256


def read_texts(text_file: Path | None, text_field: str) -> Iterator[str]:
    """The texts of a file, one at a time.

    Args:
        text_file: A .jsonl file, or any other with one text a line; none reads standard input.
        text_field: The field of a .jsonl file that holds the text.

    Raises:
        DataError: If the file is missing, not UTF-8, or a line of a .jsonl has no such text.
            Names the line and never what stands in it.
    """
    if text_file is None:
        yield from _read(sys.stdin.buffer, "standard input", None)
        return
    try:
        file = text_file.open("rb")
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise DataError(f"{text_file}: cannot be read ({reason}): check the path") from None
    with file:
        is_jsonl = text_file.suffix in {".jsonl", ".ndjson"}
        yield from _read(file, str(text_file), text_field if is_jsonl else None)


def label_texts(run_dir: Path, texts: Iterable[str], *, as_json: bool) -> Iterator[str]:
    """One line for each text: the label, a tab, the probability; or both as a JSON object.

    Args:
        run_dir: The folder of a finished run.
        texts: What to label.
        as_json: Whether lines are JSON.

    Raises:
        DataError: If the folder holds no finished model.
    """
    from discreet.server.predict import load_predictor  # torch takes seconds

    predictor = load_predictor(run_dir)
    remaining = iter(texts)
    while batch := list(islice(remaining, _TEXTS_AT_ONCE)):
        for label, probability in predictor.predict(batch):
            if as_json:
                yield orjson.dumps({"label": label, "probability": probability}).decode()
            else:
                yield f"{label}\t{probability:.4f}"


def _read(file: BinaryIO, source: str, text_field: str | None) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        place = f"{source}:{number}"
        try:
            # The byte-order mark that some editors write is no part of the first text.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"{place}: must be UTF-8 text: convert the file") from None
        if "\0" in text:
            raise DataError(f"{place}: must be text, got binary data: name a text file")
        yield text if text_field is None else _field(text, text_field, place)


def _field(line: str, text_field: str, place: str) -> str:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise DataError(f"{place}: must be a JSON object: mend the line") from None
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place}: must have text in its field `{text_field}`: give --text-field")
    return text
