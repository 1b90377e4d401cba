"""Finds the files of a corpus and opens them, decompressed on the way.

What a corpus is made of is told by the endings of names; nothing is opened to find out.
"""

from __future__ import annotations

import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

from discreet.common.errors import DataError
from discreet.common.site import CorpusConfig

Format = Literal["jsonl", "csv", "tsv", "txt", "parquet"]
"""How the rows of a file are written."""

Compression = Literal["", ".gz", ".zst", ".xz"]
"""How a file is packed: the ending that says so."""

FORMATS: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}
"""Known ending -> format."""

_COMPRESSIONS: Final[tuple[Compression, ...]] = (".gz", ".zst", ".xz")
_ENDINGS: Final = f"{' '.join(FORMATS)}, each also with {' '.join(_COMPRESSIONS)}"

READ_ERRORS: Final = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a damaged, truncated or vanished file raises."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of a corpus.

    Attributes:
        path: Where it is.
        format: How its rows are written.
        compression: How it is packed.
    """

    path: Path
    format: Format
    compression: Compression


def find_files(config: CorpusConfig) -> list[CorpusFile]:
    """The files that `config.path` names: one file, a folder's (recursive) or a glob's, sorted.

    In a folder, hidden files are left out, and so are names with unknown endings unless `format` is
    set. Links to folders are not followed.

    Raises:
        DataError: If nothing is there, or if no file has a known ending.
    """
    path = Path(config.path).expanduser()
    if path.is_file():
        return [_named_file(path, config)]
    if path.is_dir():
        found = [_file(each, config.format) for each in _files_under(path)]
        files = [each for each in found if each is not None]
        if not files:
            raise DataError(
                f"{path}: must hold files that end in {_ENDINGS}, but holds none: set format: if "
                f"they are called otherwise"
            )
        return files
    if path.exists():
        raise DataError(f"{path}: must be a file or a folder, but is neither (a device or a pipe)")
    if glob.has_magic(str(path)):
        matches = sorted(Path(each) for each in glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [_named_file(each, config) for each in matches if each.is_file()]
        if not files:
            raise DataError(f"{path}: no file matches this pattern")
        return files
    raise DataError(f"{path}: no such file or folder")


def _named_file(path: Path, config: CorpusConfig) -> CorpusFile:
    found = _file(path, config.format)
    if found is None:
        raise DataError(f"{path}: must end in {_ENDINGS}: set format: if it is called otherwise")
    return found


def _file(path: Path, wanted: Format | None) -> CorpusFile | None:
    name = path.name.lower()
    compression: Compression = next((c for c in _COMPRESSIONS if name.endswith(c)), "")
    format_ = wanted or FORMATS.get(Path(name.removesuffix(compression)).suffix)
    return CorpusFile(path, format_, compression) if format_ else None


def _files_under(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found.extend(path for path in paths if path.is_file())
    return sorted(found)


@contextmanager
def open_bytes(file: CorpusFile) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed while it is read.

    Raises:
        DataError: If it cannot be read, or turns out damaged or cut off; also where the
            caller's block meets that.
    """
    try:
        with file.path.open("rb") as packed, _unpacked(packed, file.compression) as stream:
            yield stream
    except READ_ERRORS as error:
        raise DataError(f"{file.path}: cannot be read: {_cause(error, file)}") from error


@contextmanager
def _unpacked(packed: BinaryIO, compression: Compression) -> Iterator[BinaryIO]:
    match compression:
        case ".gz":
            with gzip.GzipFile(fileobj=packed) as stream:
                yield cast(BinaryIO, stream)
        case ".xz":
            with lzma.LZMAFile(packed) as stream:
                yield cast(BinaryIO, stream)
        case ".zst":
            # Arrow's reader, not the `zstandard` package's: that one ends without an error
            # where a file is cut off, so that lost rows would look like a shorter corpus.
            import pyarrow as pa  # type: ignore[import-untyped]

            with pa.CompressedInputStream(packed, "zstd") as stream:
                yield io.BufferedReader(stream)
        case _:
            yield packed


def _cause(error: BaseException, file: CorpusFile) -> str:
    # Arrow and zlib errors describe bytes and never hold text of the file; the plainest words for
    # a person are still the system's own, where there are some.
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if file.compression:
        return f"it is cut off, damaged, or not what {file.compression} says"
    return "it is cut off or damaged"
