"""The files of the scrubbed store: outcomes by key, in Parquet, private to the site's user.

A segment is written whole under a passing name and then renamed, so a killed process leaves
complete segments only. No raw text is ever in one: a key is a keyed hash, and what was
quarantined or dropped has no text at all. A file's name says which policy made it, so a
changed setting, key or library finds nothing and scrubs anew.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from discreet.common.errors import DataError
from discreet.privacy.detect import Failure
from discreet.privacy.scrub import Outcome
from discreet.privacy.seal import private_folder, seal, unseal, write_private

KEY_BYTES = 16
"""Length of a text's key: by accident two of 2**40 texts share one with chance 2**-49."""

_PREFIX = "scrubbed-"
_ABANDONED_SECONDS = 3600


class Segments:
    """The segments of one policy in a folder.

    Args:
        folder: Made if missing; mode 0700.
        fingerprint: Of the policy: only its segments are read.
        seal_key: Encrypts the segments; none keeps them plain.
    """

    def __init__(self, folder: Path, fingerprint: str, seal_key: bytes | None) -> None:
        self._folder = private_folder(folder)
        self._name = f"{_PREFIX}{fingerprint[:32]}"
        self._seal_key = seal_key
        self._suffix = ".parquet" if seal_key is None else ".sealed"
        self._tidy()

    def _tidy(self) -> None:
        for path in self._folder.glob(f".{_PREFIX}*.part"):
            # Another process may be writing one; an old one is of a process that was killed.
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        if self._seal_key is not None:
            # Whoever asks for encryption does not expect yesterday's plain files beside it.
            for path in self._folder.glob(f"{_PREFIX}*.parquet"):
                path.unlink(missing_ok=True)

    def load(self) -> dict[bytes, Outcome]:
        """Every outcome in the segments, by key.

        Raises:
            DataError: If a segment cannot be read; the message names it.
        """
        outcomes: dict[bytes, Outcome] = {}
        for path in sorted(self._folder.glob(f"{self._name}-*{self._suffix}")):
            outcomes.update(self._read(path))
        return outcomes

    def _read(self, path: Path) -> Iterator[tuple[bytes, Outcome]]:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        content = path.read_bytes()
        if self._seal_key is not None:
            content = unseal(content, key=self._seal_key, name=path.name)
        try:
            columns = pq.ParquetFile(io.BytesIO(content)).read().to_pydict()
            rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
            outcomes = [(key, _outcome(*cells)) for key, *cells in rows]
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: must be a segment of the scrubbed store, got a file that is damaged "
                "or of another kind: delete it, the texts in it are scrubbed again"
            ) from error
        yield from outcomes

    def write(self, outcomes: Sequence[tuple[bytes, Outcome]]) -> None:
        """Write one more segment (mode 0600); none for no outcomes."""
        if not outcomes:
            return
        path = self._folder / f"{self._name}-{secrets.token_hex(8)}{self._suffix}"
        content = _as_parquet(outcomes)
        if self._seal_key is not None:
            content = seal(content, key=self._seal_key, name=path.name)
        write_private(path, content)


_COLUMNS = ("key", "text", "failure", "entities", "masked_chars")


def _as_parquet(outcomes: Sequence[tuple[bytes, Outcome]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "key": pa.array([key for key, _ in outcomes], pa.binary(KEY_BYTES)),
        "text": pa.array([o.text for _, o in outcomes], pa.string()),
        "failure": pa.array([o.failure for _, o in outcomes], pa.string()),
        "entities": pa.array([orjson.dumps(o.entities).decode() for _, o in outcomes]),
        "masked_chars": pa.array([o.masked_chars for _, o in outcomes], pa.int64()),
    }
    sink = io.BytesIO()
    # Statistics would repeat a text in clear in the file's footer; nothing reads them here.
    pq.write_table(pa.table(columns), sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


def _outcome(text: str | None, failure: str | None, entities: str, masked_chars: int) -> Outcome:
    counts = tuple((kind, number) for kind, number in orjson.loads(entities))
    return Outcome(text, None if failure is None else Failure(failure), counts, masked_chars)
