"""The site's own settings: what SITE.yaml says, as frozen objects.

The policy here is what no server can override. No policy, no training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from discreet.common.checks import Address, Name, NonNegative, Positive, PositiveInt, Probability

Action = Literal["placeholder", "mask", "pseudonym", "drop", "keep"]
"""What is done with a found entity: `<PHONE_NUMBER>`, `****`, a keyed stand-in, drop the record,
or leave it in place."""


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CorpusConfig(Section):
    """Where text is and how to read it.

    Attributes:
        path: A file, a folder or a glob; `embedded:NAME` is a corpus shipped with the program.
            Endings tell the format: .jsonl .csv .tsv .txt .parquet, each also .gz .zst .xz.
        format: Overrides what the endings tell.
        text_field: Field or column that holds the text.
        label_field: Field or column that holds the class; none for text without labels.
        owner_field: Field that names whose text it is; used to deal rows out by author.
        where: Keeps only rows whose fields have these values, e.g. `{split: train}`.
        encoding: Character encoding; none takes UTF-8 (or UTF-16 by its byte-order mark) and
            refuses anything else, naming what it looks like.
        strict: A bad row stops the program instead of being counted.
    """

    path: str = Field(min_length=1)
    format: Literal["jsonl", "csv", "tsv", "txt", "parquet"] | None = None
    text_field: Name = "text"
    label_field: Name | None = "label"
    owner_field: Name | None = None
    where: dict[str, str] = Field(default_factory=dict)
    encoding: str | None = None
    strict: bool = False


class CleanConfig(Section):
    """What is mended or left out before scrubbing.

    Attributes:
        unicode: Repair broken Unicode and drop control characters.
        html: Take the text out of HTML where a document is HTML.
        boilerplate: Drop lines that stand in very many documents of the site. Off by default:
            one text more can then change others, and the guarantee holds only for the texts
            after cleaning.
        duplicates: Which repeats to drop: `none`, `exact` (same text and label) or `near`
            (and exact). With `near`, as with `boilerplate`, one text more can drop others.
        near_threshold: Jaccard similarity of 4-grams from which two texts are near-duplicates.
        min_chars: Shorter texts are left out.
        max_chars: Longer texts are cut.
    """

    unicode: bool = True
    html: bool = True
    boilerplate: bool = False
    duplicates: Literal["none", "exact", "near"] = "exact"
    near_threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: PositiveInt = 100_000


class ScrubConfig(Section):
    """How personal data is found and replaced.

    Attributes:
        enabled: Off only for text that was scrubbed before; every report says so.
        languages: Languages of the text; all their recognizers run on every document.
        default: What is done with a found entity.
        entities: Entity kind -> action, where it differs from `default`.
        threshold: Score from which a find counts.
        workers: Processes that scrub; none takes the number of cores.
        encrypt: Keep the scrubbed store on disk encrypted, under a key in the state folder.
    """

    enabled: bool = True
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en",)
    default: Action = "placeholder"
    entities: dict[str, Action] = Field(default_factory=dict)
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.35
    workers: PositiveInt | None = None
    encrypt: bool = False


class PolicyConfig(Section):
    """What this site allows, whatever a server sends.

    Attributes:
        epsilon: Ceiling over all rounds, runs and servers, for this data set.
        delta: The delta at which `epsilon` is counted.
        min_noise_multiplier: A plan with less noise is refused.
        max_rounds: A plan with more rounds is refused.
        max_steps: A plan with more optimizer updates in all is refused.
        allow_without_privacy: Whether `privacy: none` is allowed. Off unless said.
        tasks: Allowed tasks.
        models: Allowed model kinds; none allows all.
        plans: Allowed plan fingerprints; none allows all that the rest allows.
        allow_declared_size: Whether this site's number of examples may be sent. It is private.
    """

    epsilon: Positive
    delta: Annotated[float, Probability]
    min_noise_multiplier: NonNegative = 0.0
    max_rounds: PositiveInt = 10_000
    max_steps: PositiveInt = 1_000_000
    allow_without_privacy: bool = False
    tasks: tuple[Name, ...] = ("text-classification",)
    models: tuple[Name, ...] | None = None
    plans: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None = None
    allow_declared_size: bool = False


class Site(Section):
    """SITE.yaml.

    Attributes:
        name: What the federation calls this site.
        data: Its text.
        clean: How it is cleaned.
        scrub: How personal data is replaced.
        policy: What it allows. Without a policy nothing is trained.
        state_dir: Where its ledger, keys and logs are kept.
        store_dir: Where scrubbed text is kept; none takes `state_dir`/store.
        server: Where the server listens, as HOST:PORT. Needed by `discreet client` alone.
        certs: Folder with this site's certificate and key; none goes without TLS.
        device: Where the model is trained. `auto` takes the CPU so far, as does `cpu`.
    """

    name: Name
    data: CorpusConfig
    clean: CleanConfig = CleanConfig()
    scrub: ScrubConfig = ScrubConfig()
    policy: PolicyConfig
    state_dir: Path
    store_dir: Path | None = None
    server: Address | None = None
    certs: Path | None = None
    device: Literal["auto", "cpu"] = "auto"

    @property
    def scrubbed_dir(self) -> Path:
        """Where scrubbed text is kept."""
        return self.store_dir or self.state_dir / "store"
