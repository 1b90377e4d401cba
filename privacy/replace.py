"""What takes the place of personal data.

Spans may overlap. What overlaps is joined, and the whole of it is replaced at once: every
character of every span that is not kept is gone. The longest span names the replacement,
then the one with the better score, then the first name, so the outcome never depends on
the order of the spans.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from discreet.common.site import Action, ScrubConfig
from discreet.privacy.detect import DetectionError, Failure, Span

MASK = "****"
"""Of one length always: the value's own length would narrow it down."""

_PSEUDONYM_DIGITS = 6

# In these, spaces, dots and dashes are a matter of taste: `0171 555` and `0171-555` are one.
_SEPARATORS_ARE_TASTE = frozenset(
    {
        "CREDIT_CARD",
        "IBAN_CODE",
        "MAC_ADDRESS",
        "PHONE_NUMBER",
        "UK_NHS",
        "US_BANK_NUMBER",
        "US_DRIVER_LICENSE",
        "US_ITIN",
        "US_PASSPORT",
        "US_SSN",
    }
)


@dataclass(frozen=True, slots=True)
class Found:
    """Overlapping spans as one.

    Attributes:
        start: First character of any of them.
        end: The character after the last one of any of them.
        winner: The span that names the replacement.
    """

    start: int
    end: int
    winner: Span


@dataclass(frozen=True, slots=True)
class Replacement:
    """A text after replacing.

    Attributes:
        text: The new text; none if the policy drops the record.
        entities: Kind -> number of places replaced, or that made the record drop.
        masked_chars: Characters of the old text that were replaced.
    """

    text: str | None
    entities: Counter[str]
    masked_chars: int


def join_overlaps(spans: Iterable[Span]) -> list[Found]:
    """Join spans that share a character; the result is in order and never overlaps."""
    joined: list[Found] = []
    for span in sorted(spans):
        last = joined[-1] if joined else None
        if last is None or span.start >= last.end:
            joined.append(Found(span.start, span.end, span))
        else:
            winner = min(last.winner, span, key=_rank)
            joined[-1] = Found(last.start, max(last.end, span.end), winner)
    return joined


def _rank(span: Span) -> tuple[int, float, str, int]:
    return (span.start - span.end, -span.score, span.entity, span.start)


def replace(
    text: str, spans: Iterable[Span], *, config: ScrubConfig, key: bytes | None
) -> Replacement:
    """Replace what was found in a text as the policy says.

    Args:
        text: The text that was searched.
        spans: What was found in it; may overlap, in any order.
        config: What is done with each kind.
        key: The site's key for pseudonyms; without it a pseudonym is a placeholder.

    Raises:
        DetectionError: If a span does not lie within the text: what else is wrong with it
            cannot be known.
    """
    actions = {span: config.entities.get(span.entity, config.default) for span in spans}
    for span in actions:
        # Written so that a NaN score fails.
        if not (0 <= span.start < span.end <= len(text) and math.isfinite(span.score)):
            raise DetectionError(Failure.RECOGNIZER, "a span does not lie within its text")
    # Dropping is asked of every span, not of the winners: a record that must go must not be
    # saved by a longer span around the reason.
    if dropping := [span for span, action in actions.items() if action == "drop"]:
        return Replacement(None, Counter(f.winner.entity for f in join_overlaps(dropping)), 0)
    # A kept span may not win, nor widen another: what it overlaps is still replaced.
    found = join_overlaps(span for span, action in actions.items() if action != "keep")
    parts: list[str] = []
    position = 0
    for place in found:
        stand_in = _stand_in(text, place.winner, action=actions[place.winner], key=key)
        parts += [text[position : place.start], stand_in]
        position = place.end
    return Replacement(
        "".join([*parts, text[position:]]),
        Counter(place.winner.entity for place in found),
        sum(place.end - place.start for place in found),
    )


def _stand_in(text: str, span: Span, *, action: Action, key: bytes | None) -> str:
    if action == "mask":
        return MASK
    if action == "pseudonym" and key is not None:
        return pseudonym(text[span.start : span.end], span.entity, key=key)
    return f"<{span.entity}>"


def pseudonym(value: str, entity: str, *, key: bytes) -> str:
    """A stand-in such as `<PHONE_NUMBER_3f9a1c>`: the same for the same value and key.

    HMAC rather than a plain hash: whoever lacks the key cannot try all telephone numbers.
    Six digits tell some thousand values of a site apart; that two may share one is to the
    good of both.

    Args:
        value: What was found. Case, width and, in numbers, separators do not matter.
        entity: Its kind.
        key: The site's secret.
    """
    plain = unicodedata.normalize("NFKC", value).casefold().strip()
    if entity in _SEPARATORS_ARE_TASTE:
        plain = "".join(character for character in plain if character.isalnum())
    message = f"{entity}\0{plain}".encode("utf-8", "surrogatepass")
    digest = hmac.new(key, message, hashlib.sha256).hexdigest()
    return f"<{entity}_{digest[:_PSEUDONYM_DIGITS]}>"
