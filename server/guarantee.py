"""The guarantee in plain words, whole: every report and every screen takes it from here.

It says what holds, for what unit, against whom and over which runs, and as plainly what
does not. Nothing here is computed: it only says what the plan and the ledgers say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from discreet.common.plan import Plan, PrivacyConfig
from discreet.server.history import Guarantee, SiteSummary

RELATION = "add or remove one example"
"""How neighbouring data sets differ."""

NO_PRIVACY = (
    "NO PRIVACY GUARANTEE. This run was made with `privacy: none`: no gradient was clipped and "
    "no noise was added. Whoever gets an update or the model may be able to tell whether a "
    "text was in a site's data, and to get passages of it back. Use it to compare, on text "
    "that may be public, and for nothing else."
)
"""The statement of a run without privacy."""


def guarantee_of(
    plan: Plan, sites: Sequence[SiteSummary], planned_epsilon: float | None
) -> Guarantee:
    """The guarantee of a run, with what its sites have spent.

    Args:
        plan: The plan.
        sites: Every site, with the epsilon it has spent so far.
        planned_epsilon: Epsilon of the plan run to its end; None without privacy.
    """
    privacy = plan.privacy
    if privacy == "none":
        return Guarantee("none", "none", None, None, None, NO_PRIVACY, _WITHOUT_PRIVACY)
    spent = max((site.epsilon for site in sites if site.epsilon is not None), default=0.0)
    # The largest of each: that pair holds for every site, whatever delta it counts at.
    delta = max((site.delta for site in sites if site.delta is not None), default=privacy.delta)
    return Guarantee(
        unit=privacy.unit,
        relation=RELATION,
        epsilon=spent,
        delta=delta,
        planned_epsilon=planned_epsilon,
        statement=_statement(plan, privacy, (spent, delta)),
        not_protected=(*_NOT_PROTECTED, *_of_this_plan(plan), *_of_the_count(sites)),
    )


def rounded_up(epsilon: float, digits: int = 3) -> float:
    """Epsilon for people: never less than it is."""
    if not math.isfinite(epsilon):
        return epsilon
    scale = 10.0**digits
    # A part in 1e9 is the accountant's own last digits, not a whole step more.
    return math.ceil(epsilon * scale - 1e-6) / scale


def _statement(plan: Plan, privacy: PrivacyConfig, bound: tuple[float, float]) -> str:
    training, delta, epsilon = plan.training, bound[1], f"{rounded_up(bound[0]):.3f}"
    paragraphs = (
        f"Every site's training is ({epsilon}, {delta:g})-differentially private: "
        f"epsilon {epsilon} at delta {delta:g}, per {privacy.unit}. This is the largest "
        "epsilon of any site; the table of sites has each one's own.",
        f"The unit is one {privacy.unit}: one text with its label. Two data sets are neighbours "
        f"if one comes from the other when you {RELATION}. For any two neighbours, and for "
        "anything that somebody could conclude from what the site sent, the chance of it differs "
        "by a factor of at most e to the epsilon, but for a probability of delta.",
        "It holds against the server, against the other sites, against whoever gets the model, "
        "and against all of them together, whatever else they know and however much they compute: "
        "each site adds its own noise before anything leaves it, so it need not trust any of them.",
        "It covers all rounds of this run together, and stays true for everything that is done "
        "with the model later. Another run on the same text adds to it: the site's own ledger "
        "counts all runs on a data set, whichever server asked, and refuses to pass the site's "
        "ceiling.",
        f"How: DP-SGD. Each step takes {_sampling(training.sample_rate)}, clips each one's "
        f"gradient to an L2 norm of {privacy.clipping_norm:g} and adds Gaussian noise from a "
        "cryptographic generator to the sum. Steps planned: "
        f"{training.steps_per_round} in each of {training.rounds} rounds. "
        f"{_accounting(training.sample_rate)}",
    )
    return "\n\n".join(paragraphs)


def _sampling(sample_rate: float) -> str:
    if sample_rate == 1:
        return "every example"
    return f"every example with chance {sample_rate:g} (Poisson sampling)"


def _accounting(sample_rate: float) -> str:
    if sample_rate == 1:
        return "Losses are composed by the exact formula of the Gaussian mechanism."
    return "Losses are composed as privacy loss distributions (dp-accounting), rounded up."


_NOT_PROTECTED = (
    "A person, as such: who wrote several examples is protected for each of them, and for k of "
    "them together only at about k times the epsilon, with a larger delta.",
    "What is public in the plan: the labels, the tokenizer, the sample rate, the number of steps.",
    "Which texts a site trains on, where its cleaning drops near-repeats or boilerplate (both off "
    "by default): these are found by looking at all of its texts together, and the unit is then "
    "an example as it stands after that. Exact repeats are dropped at no such cost.",
    "That a site took part, when it answered and how long it took, and that it refused.",
    "What the model rightly learns about all texts in common: that is what it is for.",
    "The server's own test split: it is public, and the scores are measured on it.",
    "The text on the site's own disk: that is for the site's file permissions and encryption.",
    "Names and numbers that scrubbing missed. Scrubbing finds most and never all; it is a second "
    "line of defence. The epsilon above does not count on it.",
    "The world outside the mathematics: floating-point arithmetic is guarded but not exact, and "
    "a site that runs another program than this one gets no promise from it.",
)

_WITHOUT_PRIVACY = (
    "Any text: without noise, an update can be turned back into passages of it.",
    "Names and numbers that scrubbing missed. It finds most and never all.",
)


def _of_the_count(sites: Sequence[SiteSummary]) -> tuple[str, ...]:
    """What a server that sees no ledgers must add."""
    if all(site.ceiling is not None for site in sites):
        return ()
    return (
        "More than this run, as the server counts it: a site that was killed in the middle of a "
        "round may have paid for that round again, and for other runs. Its own ledger has what it "
        "has spent, and refuses to pass its ceiling; this report does not see it.",
    )


def _of_this_plan(plan: Plan) -> tuple[str, ...]:
    """What only some plans leave open."""
    if plan.federation.weights == "declared":
        return (
            "Each site's number of examples: this plan sends it without noise, as every site's "
            "policy allowed.",
        )
    return ()
