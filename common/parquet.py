"""Reads rows from Parquet, in batches bounded by bytes and not by rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Final, Protocol

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from discreet.common.errors import DataError
from discreet.common.files import CorpusFile, open_bytes
from discreet.common.formats import BrokenRow, Row, require_fields, used_fields
from discreet.common.site import CorpusConfig

_BATCH_BYTES: Final = 8 << 20
_MAX_BATCH_ROWS: Final = 1024
_SPOOL_BYTES: Final = 64 << 20


class _Cell(Protocol):
    def as_py(self) -> object:
        """The cell as a Python object."""


class _Column(Protocol):
    def to_pylist(self) -> list[object]:
        """All cells as Python objects."""

    def __iter__(self) -> Iterator[_Cell]: ...


def read_parquet(file: CorpusFile, config: CorpusConfig) -> Iterator[Row | BrokenRow]:
    """Read the columns that the settings name, row by row.

    Memory holds one batch and the pages it comes from, whatever the file's size. A packed file
    (.parquet.gz), which can only be read from front to back, is first unpacked: in
    memory up to 64 MiB, beyond that into a temporary file without a name.

    Raises:
        DataError: If the file is damaged or is no Parquet, or lacks a column.
    """
    name = str(file.path)
    try:
        with open_bytes(file) as stream:
            if not file.compression:
                yield from _rows(stream, config, name)
                return
            with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as unpacked:
                shutil.copyfileobj(stream, unpacked)
                unpacked.seek(0)
                yield from _rows(unpacked, config, name)
    except (pa.ArrowException, ValueError) as error:
        # Arrow's own words can hold a value of the file.
        raise DataError(f"{name}: must be Parquet, but cannot be read as such: damaged?") from error


def _rows(stream: object, config: CorpusConfig, name: str) -> Iterator[Row | BrokenRow]:
    # Read in small pieces: by itself, Arrow takes whole row groups into memory beforehand.
    with pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False) as table:
        require_fields(table.schema_arrow.names, config, name)
        columns = used_fields(config)
        number = 0
        batches = table.iter_batches(
            batch_size=_batch_rows(table.metadata), columns=columns, use_threads=False
        )
        for batch in batches:
            values = [_values(batch.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                number += 1
                yield Row(number, dict(zip(columns, row, strict=True)))


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row_bytes = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    return max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))


def _values(column: _Column) -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        # Bytes in a text column that are not UTF-8: that cell alone is bad, as bytes.
        return [_value(cell) for cell in column]


def _value(cell: _Cell) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return b""
