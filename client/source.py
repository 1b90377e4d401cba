"""Where a site's raw text comes from: a fingerprint, and a way to read it once more.

The fingerprint lets a prepared site start again without reading, cleaning or scrubbing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from discreet.common.corpus import RawText, corpus_files, read_corpus
from discreet.common.site import CorpusConfig


@dataclass(frozen=True, slots=True)
class TextSource:
    """One site's raw text.

    Attributes:
        fingerprint: Changes when the text or the way it is read changes. Never leaves the site.
        read: Gives the rows, in the same order each time.
    """

    fingerprint: str
    read: Callable[[], Iterator[RawText]]


def corpus_source(config: CorpusConfig) -> TextSource:
    """The source that reads a corpus as SITE.yaml describes it.

    Raises:
        DataError: If there is no such file.
    """
    return TextSource(corpus_fingerprint(config), lambda: read_corpus(config))


def corpus_fingerprint(config: CorpusConfig) -> str:
    """SHA-256 over the bytes of the files and the settings that read them, in hexadecimal."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for path in corpus_files(config):
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
