"""The plan: what RUN.yaml says, as frozen objects.

A plan is public. Everything that the privacy bound depends on (sample rate, steps,
divisor, clipping norm, noise) is a constant of the plan and never derived from private
data. `fingerprint` names the part of it that a site agrees to: where the coordinator
keeps its test split, how long it waits for whom, and how a simulation deals out data are not
part of that.

Checks are written so that NaN fails: every comparison with NaN is false.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, model_validator

from discreet.common.checks import (
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
    Rate,
)
from discreet.common.site import CleanConfig, CorpusConfig, PolicyConfig, ScrubConfig, Section


class TaskConfig(Section):
    """What is learned.

    Attributes:
        kind: Only text classification so far.
        labels: The class names, in order. A public constant: never read off private data.
    """

    kind: Literal["text-classification"] = "text-classification"
    labels: Annotated[tuple[Name, ...], Field(min_length=2, max_length=10_000)]

    @model_validator(mode="after")
    def _check_unique(self) -> TaskConfig:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be different from each other: remove the repeats")
        return self


class LinearModel(Section):
    """Hashed n-grams of tokens into one linear layer: no vocabulary, few parameters.

    Attributes:
        kind: `linear`.
        buckets: Number of hash buckets, one row of weights each.
        ngrams: Longest n-gram of tokens that is hashed, 1 to this.
    """

    kind: Literal["linear"] = "linear"
    buckets: Annotated[int, Field(ge=2, le=2**22)] = 2**14
    ngrams: Annotated[int, Field(ge=1, le=5)] = 1


class BagModel(Section):
    """The mean of token embeddings, then a linear layer.

    Attributes:
        kind: `bag`.
        width: Length of one embedding.
    """

    kind: Literal["bag"] = "bag"
    width: PositiveInt = 64


class RecurrentModel(Section):
    """A recurrent network over the tokens; its last real state is classified.

    Attributes:
        kind: `lstm` or `gru`.
        width: Length of a token embedding.
        hidden: Length of the recurrent state.
        layers: Number of recurrent layers.
    """

    kind: Literal["lstm", "gru"]
    width: PositiveInt = 32
    hidden: PositiveInt = 64
    layers: Annotated[int, Field(ge=1, le=8)] = 1


class TransformerModel(Section):
    """A pre-norm Transformer encoder; the masked mean of its states is classified.

    Attributes:
        kind: `transformer`.
        width: Length of a state, a multiple of `heads`.
        heads: Number of attention heads.
        layers: Number of blocks.
    """

    kind: Literal["transformer"]
    width: PositiveInt = 64
    heads: PositiveInt = 4
    layers: Annotated[int, Field(ge=1, le=48)] = 2

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerModel:
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {self.width} and heads "
                f"{self.heads}: use width {self.heads * max(1, self.width // self.heads)}"
            )
        return self


ModelConfig = Annotated[
    LinearModel | BagModel | RecurrentModel | TransformerModel, Field(discriminator="kind")
]


class TokensConfig(Section):
    """How text becomes numbers. The tokenizer is public and never fitted on private text.

    Attributes:
        path: A `tokenizer.json` of the `tokenizers` library; none takes the embedded one.
        sha256: What that file must hash to, if given.
        max_tokens: Tokens of one text that are kept; the rest is cut off.
    """

    path: Path | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=8192)] = 64


class PrivacyConfig(Section):
    """How much one example's text may show in what a site sends.

    Attributes:
        unit: What neighbouring data sets differ in: one `example`, added or removed.
        epsilon: The bound over all rounds of the plan.
        delta: The chance that the bound fails; far below 1 / number of examples.
        clipping_norm: Largest L2 norm of one example's gradient.
        noise_multiplier: Noise standard deviation / `clipping_norm`; none lets the planner
            solve it for `epsilon`. If given, it must reach `epsilon`.
    """

    unit: Literal["example"]
    epsilon: Positive
    delta: Annotated[float, Probability]
    clipping_norm: Positive = 1.0
    noise_multiplier: Positive | None = None


class TrainingConfig(Section):
    """Local training at each site.

    Attributes:
        rounds: Times the server sends the model out.
        steps_per_round: Optimizer updates of one round at one site.
        sample_rate: Chance that an example joins a step (Poisson sampling).
        expected_batch_size: What the sum of gradients is divided by. A public constant:
            about `sample_rate` times the examples of a usual site.
        physical_batch_size: Examples in memory at once; changes speed, not privacy.
        optimizer: DP-SGD, DP-Adam or DP-AdamW.
        learning_rate: Step size of the optimizer.
        momentum: Momentum of `sgd`.
        weight_decay: Pull of the weights to zero.
        seed: Starts the weights; never reaches noise or sampling under privacy.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)]
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)] = 1
    sample_rate: Annotated[float, Rate]
    expected_batch_size: Positive
    physical_batch_size: PositiveInt = 256
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class FederationConfig(Section):
    """How the server joins what the sites send.

    Attributes:
        aggregation: `fedavg`, or `fedavgm` / `fedadam` on the already private mean.
        server_learning_rate: Step size on the mean update.
        server_momentum: Momentum of `fedavgm`, first moment of `fedadam`.
        cohort_size: Sites asked in a round and divisor of the sum; none asks all.
        update_clipping_norm: Largest L2 norm of one site's whole update.
        weights: `uniform`, or `declared` sizes where every site's policy allows it.
        update_dtype: Number format of an update on the wire.
        min_sites: The quorum: a round begins when so many sites are there, and its updates are
            used only if so many came.
        oversample: So many times `cohort_size` are asked, and the first `cohort_size` to answer
            are used. All that are asked pay for the round.
        round_timeout_seconds: Longest wait for the updates of a round; none waits for all.
        wait_seconds: Longest wait of a server for `min_sites` sites.
    """

    aggregation: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    cohort_size: PositiveInt | None = None
    update_clipping_norm: Positive = 10.0
    weights: Literal["uniform", "declared"] = "uniform"
    update_dtype: Literal["float32", "bfloat16"] = "float32"
    min_sites: PositiveInt = 1
    oversample: Annotated[float, Field(ge=1, le=10)] = 1.0
    round_timeout_seconds: Positive | None = None
    wait_seconds: Positive = 600.0

    @model_validator(mode="after")
    def _check_quorum(self) -> FederationConfig:
        if self.cohort_size is not None and self.cohort_size < self.min_sites:
            raise ValueError(
                f"cohort_size must be at least min_sites, got {self.cohort_size} and "
                f"{self.min_sites}: no round could reach its quorum"
            )
        return self


_PATIENCE = {"min_sites", "oversample", "round_timeout_seconds", "wait_seconds"}
"""How long a server waits, and for how many: its own affair, nothing that a site agrees to."""


class EvaluationConfig(Section):
    """The public split that the server tests the model on.

    Attributes:
        data: Where it is. Public: nothing of a site's may be in it.
        clean: How it is cleaned; as the sites do.
        scrub: How it is scrubbed; as the sites do, so that the model meets what it learned from.
    """

    data: CorpusConfig
    clean: CleanConfig = CleanConfig()
    scrub: ScrubConfig = ScrubConfig()


class PartitionConfig(Section):
    """How a simulation deals one corpus out to sites.

    Attributes:
        kind: `iid`, `dirichlet` over the labels, or by the value of a `field`.
        field: The field of a row that names its site, for `field`.
        alpha: Concentration of `dirichlet`; small means each site sees few labels.
        seed: Makes the deal repeatable.
    """

    kind: Literal["iid", "dirichlet", "field"] = "iid"
    field: Name | None = None
    alpha: Positive = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _check_field(self) -> PartitionConfig:
        if (self.kind == "field") != (self.field is not None):
            raise ValueError(
                f"field must be given for kind: field and for nothing else, got kind "
                f"{self.kind} and field {self.field}"
            )
        return self


class SiteOverride(Section):
    """What differs at one simulated site.

    Attributes:
        policy: Its policy, in place of the simulation's.
        clean: Its cleaning.
        scrub: Its scrubbing.
    """

    policy: PolicyConfig | None = None
    clean: CleanConfig | None = None
    scrub: ScrubConfig | None = None


class SimulationConfig(Section):
    """The sites of `discreet simulate`; a deployment ignores this section.

    Attributes:
        data: The corpus that is dealt out.
        num_sites: Number of sites; none with `partition.kind: field` takes all owners of 2 rows.
        partition: How rows are dealt.
        clean: Cleaning at every site.
        scrub: Scrubbing at every site.
        policy: Policy of every site; none allows just what the plan asks for.
        sites: Per-site overrides, by site name (`site-0000`, `site-0001`, ...).
        max_threads: Sites trained at the same time; none lets the program decide.
    """

    data: CorpusConfig
    num_sites: Annotated[int, Field(ge=1, le=1_000_000)] | None = 10
    partition: PartitionConfig = PartitionConfig()
    clean: CleanConfig = CleanConfig()
    scrub: ScrubConfig = ScrubConfig()
    policy: PolicyConfig | None = None
    sites: dict[str, SiteOverride] = Field(default_factory=dict)
    max_threads: PositiveInt | None = None


class Plan(Section):
    """RUN.yaml.

    Attributes:
        name: Names the run in reports.
        task: What is learned.
        model: What learns it.
        tokens: How text becomes numbers.
        privacy: The guarantee, or `none`: training for comparison, without any.
        training: Local training.
        federation: Aggregation.
        evaluation: The server's public split; none runs without measuring.
        simulation: Data and sites of `discreet simulate`.
    """

    name: Name
    task: TaskConfig
    model: ModelConfig
    tokens: TokensConfig = TokensConfig()
    privacy: PrivacyConfig | Literal["none"]
    training: TrainingConfig
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig | None = None
    simulation: SimulationConfig | None = None

    @property
    def is_private(self) -> bool:
        """Whether training is differentially private."""
        return self.privacy != "none"

    @property
    def total_steps(self) -> int:
        """Optimizer updates of one site over the whole plan."""
        return self.training.rounds * self.training.steps_per_round

    def shared_json(self) -> bytes:
        """The part that server and sites agree on, as canonical JSON (sorted keys)."""
        content = self.model_dump(
            mode="json",
            exclude={"evaluation": True, "simulation": True, "federation": _PATIENCE},
        )
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `shared_json`, in hexadecimal: what a site approves."""
        return hashlib.sha256(self.shared_json()).hexdigest()
