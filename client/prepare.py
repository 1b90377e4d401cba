"""A site's text, made ready once: raw > clean > scrub > a file that later runs start from.

The file is named by what it was made from (source, cleaning, scrubbing), holds scrubbed text
only, and is written whole or not at all. The counts beside it are private: they stay here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from discreet.client.source import TextSource
from discreet.common.errors import DataError
from discreet.common.site import Site
from discreet.privacy.scrub import ScrubbedText, ScrubReport
from discreet.privacy.scrub_pool import ScrubPool
from discreet.privacy.seal import derived_key, private_folder, seal, site_key, unseal, write_private
from discreet.privacy.store import ScrubbedStore

MIN_EXAMPLES = 2
"""A site with fewer texts is refused: an average over one text is that text."""

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """A site's scrubbed texts, and the counts of how they came about (private numbers).

    Attributes:
        texts: The texts, in the order of the source.
        labels: The label of each.
        entities: Entity kind -> places replaced.
        counts: `rows`, `cleaned`, `scrubbed`, `quarantined`, `dropped` -> number of texts.
    """

    texts: list[str]
    labels: list[str | None]
    entities: dict[str, int]
    counts: dict[str, int]


def is_prepared(site: Site, source: TextSource) -> bool:
    """Whether an earlier run has made this very text ready under these very settings."""
    return _path(site, source).exists()


def prepare(
    site: Site,
    source: TextSource,
    *,
    pool: ScrubPool | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> PreparedTexts:
    """Clean and scrub a site's text, or read what an earlier run made of the same text.

    Args:
        site: The site's settings.
        source: Where its raw text comes from.
        pool: Scrubbing processes to share between sites.
        on_progress: Told how many texts are scrubbed so far.

    Raises:
        DataError: If the text cannot be read, or fewer than `MIN_EXAMPLES` texts are left.
    """
    path = _path(site, source)
    if not path.exists():
        content = _clean_and_scrub(site, source, pool, on_progress)
        write_private(path, _seal(site, path, content))
    return _from_parquet(_unseal(site, path, path.read_bytes()), path)


def _clean_and_scrub(
    site: Site,
    source: TextSource,
    pool: ScrubPool | None,
    on_progress: Callable[[int], None] | None,
) -> bytes:
    # Cleaning loads SciPy and more, which a prepared site never needs.
    from discreet.common.clean import CleanReport, clean

    cleaning, scrubbing = CleanReport(), ScrubReport()
    store = ScrubbedStore(site.scrubbed_dir, site.scrub, state_dir=site.state_dir)
    texts = store.scrub_all(
        clean(source.read(), site.clean, cleaning),
        pool=pool,
        on_progress=on_progress,
        report=scrubbing,
    )
    # Before anything is written: else the next run would take this site for a ready one.
    if len(texts) < MIN_EXAMPLES:
        raise DataError(
            f"site {site.name}: must have at least {MIN_EXAMPLES} texts after cleaning and "
            f"scrubbing, got {len(texts)}: give it more text, or make fewer sites"
        )
    counts = {
        "rows": cleaning.num_in,
        "cleaned": cleaning.num_out,
        "scrubbed": scrubbing.num_out,
        "quarantined": scrubbing.quarantined,
        "dropped": scrubbing.dropped,
    }
    return _to_parquet(texts, {"entities": dict(scrubbing.entities), "counts": counts})


def _path(site: Site, source: TextSource) -> Path:
    store = ScrubbedStore(site.scrubbed_dir, site.scrub, state_dir=site.state_dir)
    made_from = orjson.dumps(
        [_SCHEMA, source.fingerprint, site.clean.model_dump(mode="json"), store.fingerprint]
    )
    digest = hashlib.sha256(made_from).hexdigest()[:32]
    suffix = "sealed" if site.scrub.encrypt else "parquet"
    return private_folder(site.scrubbed_dir) / f"prepared-{digest}.{suffix}"


def _seal(site: Site, path: Path, content: bytes) -> bytes:
    if not site.scrub.encrypt:
        return content
    return seal(content, key=derived_key(site_key(site.state_dir), "prepared"), name=path.name)


def _unseal(site: Site, path: Path, content: bytes) -> bytes:
    if not site.scrub.encrypt:
        return content
    return unseal(content, key=derived_key(site_key(site.state_dir), "prepared"), name=path.name)


def _to_parquet(texts: Sequence[ScrubbedText], summary: dict[str, dict[str, int]]) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns = {
        "text": pa.array([text.text for text in texts], pa.string()),
        "label": pa.array([text.label for text in texts], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({"discreet": orjson.dumps(summary)})
    sink = io.BytesIO()
    # Statistics would repeat a text in the file's footer; nothing reads them here.
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


def _from_parquet(content: bytes, path: Path) -> PreparedTexts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()
        summary = orjson.loads((table.schema.metadata or {})[b"discreet"])
        columns = table.to_pydict()
        return PreparedTexts(columns["text"], columns["label"], **summary)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: must be a site's prepared text, got a file that is damaged or of another "
            "kind: delete it, the text is prepared again"
        ) from error
