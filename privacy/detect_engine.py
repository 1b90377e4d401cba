"""Presidio's engine without a model, a download or a network look-up.

Three things in Presidio fail open and are closed here: an e-mail address makes `tldextract`
fetch a list from the network; a regular expression that takes too long is skipped with a
warning; and its debug log and some of its exceptions hold words of the text.

Importing this module loads Presidio and spaCy (about one second): only
`discreet.privacy.detect.presidio_detector` does, and in most runs only in a worker process.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

# Before the import: tldextract reads it once, and would fetch from publicsuffix.org.
os.environ["TLDEXTRACT_PUBLIC_SUFFIX_LIST_URLS"] = ""
# Without this Presidio looks for a GPU; its memory belongs to training.
os.environ.setdefault("PRESIDIO_DEVICE", "cpu")
# One pattern on one piece takes milliseconds; Presidio would wait a minute for it.
os.environ.setdefault("REGEX_TIMEOUT_SECONDS", "10")

with warnings.catch_warnings():
    # typer, which spaCy's command line imports, uses names that click has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import spacy
    import tldextract
    from presidio_analyzer import (
        AnalyzerEngine,
        EntityRecognizer,
        RecognizerRegistry,
        RecognizerResult,
    )
    from presidio_analyzer import predefined_recognizers as predefined
    from presidio_analyzer.nlp_engine import NlpArtifacts, SpacyNlpEngine
    from spacy.language import Language
    from spacy.tokens import Doc

from discreet.privacy.detect import (
    MAX_TEXT_CHARS,
    MAX_TEXT_SECONDS,
    DetectionError,
    Failure,
    Span,
    engine_version,
    known_entities,
    refusal_of,
)
from discreet.privacy.detect_pieces import from_window, pieces_of

_MIN_PHONE_DIGITS = 7
_LEADERS = re.compile(r"[.-]{8,}")
_DIGIT = re.compile(r"\d")

_is_detecting: ContextVar[bool] = ContextVar("_is_detecting", default=False)

# No list to fetch and no cache folder to write: only the snapshot inside the package.
_suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def _silence_and_tighten() -> None:
    """Keep Presidio's words about a text out of the logs and make its warnings failures."""
    for name in ("presidio-analyzer", "decision_process", "tldextract"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.disabled = True
    # Presidio skips what takes too long with no more than `logger.warning`
    # (pattern_recognizer.py, iban_recognizer.py). A handler or filter would depend on how
    # the process sets up logging; the method does not.
    presidio = logging.getLogger("presidio-analyzer")
    presidio.warning = _raise_while_detecting(presidio.warning)  # type: ignore[method-assign]


def _raise_while_detecting(warning: Callable[..., None]) -> Callable[..., None]:
    def warn(*args: object, **kwargs: object) -> None:
        if _is_detecting.get():
            raise DetectionError(Failure.RECOGNIZER)
        warning(*args, **kwargs)

    return warn


_silence_and_tighten()


@Language.component("discreet_lower_lemma")
def _lower_lemma(doc: Doc) -> Doc:
    # A blank pipeline has no lemmas, and context words are matched against lemmas only:
    # without this a social security number never reaches the threshold.
    for token in doc:
        token.lemma_ = token.lower_
    return doc


class _OfflineSpacy(SpacyNlpEngine):
    """Presidio's spaCy engine around pipelines that need no model."""

    def __init__(self, languages: tuple[str, ...]) -> None:
        super().__init__(models=[{"lang_code": k, "model_name": "blank"} for k in languages])
        self.pipelines = {language: spacy.blank(language) for language in languages}
        # Presidio leaves this attribute's type at None.
        self.nlp = self.pipelines  # type: ignore[assignment]
        for pipeline in self.pipelines.values():
            pipeline.add_pipe("discreet_lower_lemma")
            # spaCy's own limit guards its parser, which is not loaded; ours is checked first.
            pipeline.max_length = MAX_TEXT_CHARS + 1

    def load(self) -> None:
        """Nothing: the original would download."""


class _OfflineEmailRecognizer(predefined.EmailRecognizer):
    """E-mail addresses, checked against the embedded suffix list."""

    def validate_result(self, pattern_text: str) -> bool | None:
        """True for a public domain; None keeps the pattern's own score.

        Presidio says False otherwise, which unmasks every address at `.local`, `.corp` or
        `.internal`: just those that stand in private mail.
        """
        return True if _suffixes(pattern_text).fqdn else None


class _UrlRecognizer(predefined.UrlRecognizer):
    """Addresses of pages, without a second per line of dots.

    The host's pattern tries some thousand endings after every dot of a run. No host has
    such a run; in a path it stays what it is to the pattern, a character that is no space.
    """

    def analyze(
        self,
        text: str,
        entities: list[str],
        nlp_artifacts: NlpArtifacts | None = None,
        regex_flags: int | None = None,
    ) -> list[RecognizerResult]:
        """What Presidio finds, but for hosts with a run of eight dots or more."""
        leaders_gone = _LEADERS.sub(lambda run: "_" * len(run[0]), text)
        return super().analyze(leaders_gone, entities, nlp_artifacts, regex_flags)


class _PhoneRecognizer(predefined.PhoneRecognizer):
    """Telephone numbers of `_MIN_PHONE_DIGITS` digits or more, written in any way.

    Presidio's own leniency of 1 finds 55% of a synthetic test set's numbers and 0 finds all
    of them, but 0 alone also takes every price and every hour for a number. None of that
    set's 92 numbers has fewer digits than this.
    """

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """What Presidio finds, without the short ones."""
        # Saves a third of the whole search: most texts have not that many digits at all.
        if not _has_phone_digits(text):
            return []
        found: list[RecognizerResult] = super().analyze(
            text,
            entities,
            nlp_artifacts,  # type: ignore[arg-type]  # Presidio's own default is None.
        )
        return [result for result in found if _has_phone_digits(text[result.start : result.end])]


def _has_phone_digits(text: str) -> bool:
    return len(_DIGIT.findall(text)) >= _MIN_PHONE_DIGITS


def _recognizers(language: str) -> list[EntityRecognizer]:
    """Presidio's default pattern recognizers, named one by one."""
    found: list[EntityRecognizer] = [
        predefined.CreditCardRecognizer(supported_language=language),
        predefined.CryptoRecognizer(supported_language=language),
        predefined.DateRecognizer(supported_language=language),
        _OfflineEmailRecognizer(supported_language=language),
        predefined.IbanRecognizer(supported_language=language),
        predefined.IpRecognizer(supported_language=language),
        predefined.MacAddressRecognizer(supported_language=language),
        predefined.MedicalLicenseRecognizer(supported_language=language),
        _PhoneRecognizer(supported_language=language, leniency=0),
        _UrlRecognizer(supported_language=language),
        predefined.UuidRecognizer(supported_language=language),
    ]
    if language == "en":
        found += [
            predefined.NhsRecognizer(),
            predefined.UsBankRecognizer(),
            predefined.UsItinRecognizer(),
            predefined.UsLicenseRecognizer(),
            predefined.UsPassportRecognizer(),
            predefined.UsSsnRecognizer(),
        ]
    return found


class _PlainCharacters(dict[int, str]):
    """Character -> the plain one that the patterns know, each of length 1.

    Full-width and other digits become ASCII digits, odd hyphens and spaces plain ones.
    Letters without case (Chinese and others) become spaces: a pattern's word border does
    not see one between such a letter and a digit.
    """

    def __missing__(self, code: int) -> str:
        self[code] = plain = _plain(chr(code))
        return plain


def _plain(character: str) -> str:
    digit = unicodedata.digit(character, -1)
    if digit >= 0:
        return str(digit)
    folded = unicodedata.normalize("NFKC", character)
    plain = folded if len(folded) == 1 else character
    return {"Pd": "-", "Lo": " "}.get(unicodedata.category(plain), plain)


_PLAIN = _PlainCharacters()


def _views_of(text: str) -> Iterator[str]:
    """The text as it is and, where that differs, in plain characters. All of one length."""
    yield text
    if not text.isascii():
        plain = text.translate(_PLAIN)
        if plain != text:
            yield plain


class PresidioDetector:
    """Presidio's pattern recognizers for some languages; see `Detector`.

    Safe to share between threads: one text is searched at a time.

    Attributes:
        version: Versions of the libraries and of our rules.
        entities: The kinds it finds.
    """

    def __init__(self, languages: tuple[str, ...], threshold: float) -> None:
        self.version = engine_version()
        self.entities = known_entities(languages)
        self._languages = languages
        self._threshold = threshold
        self._nlp = _OfflineSpacy(languages)
        recognizers = [r for language in languages for r in _recognizers(language)]
        self._engine = AnalyzerEngine(
            registry=RecognizerRegistry(recognizers, supported_languages=list(languages)),
            nlp_engine=self._nlp,
            supported_languages=list(languages),
            log_decision_process=False,
        )
        self._lock = threading.Lock()

    def detect(self, text: str) -> list[Span]:
        """The spans of `text`, sorted; the best score where two are the same.

        Raises:
            DetectionError: If the text is too long or took too long, or a recognizer failed.
        """
        if refusal := refusal_of(text):
            raise DetectionError(refusal)
        scores: dict[tuple[int, int, str], float] = {}
        with self._lock:
            for span in self._search(text):
                place = (span.start, span.end, span.entity)
                scores[place] = max(span.score, scores.get(place, 0.0))
        return sorted(Span(*place, score) for place, score in scores.items())

    def _search(self, text: str) -> Iterator[Span]:
        deadline = time.monotonic() + MAX_TEXT_SECONDS
        for view in _views_of(text):
            for piece in pieces_of(text):
                if time.monotonic() > deadline:
                    raise DetectionError(Failure.TOO_SLOW)
                window = view[piece.left : piece.right]
                for language in self._languages:
                    yield from from_window(text, piece, self._analyze(window, language))

    def _analyze(self, window: str, language: str) -> list[Span]:
        token = _is_detecting.set(True)
        try:
            # spaCy remembers every word it ever met; the zone forgets them again, else
            # memory grows with the corpus.
            with self._nlp.pipelines[language].memory_zone():
                found = self._engine.analyze(window, language, score_threshold=self._threshold)
            return [Span(r.start, r.end, r.entity_type, float(r.score)) for r in found]
        except Exception as error:
            failure = type(error).__name__
        finally:
            _is_detecting.reset(token)
        # Raised out here, and with the type's name alone: Presidio's messages hold words of
        # the text, and an exception raised above would carry the first one along.
        raise DetectionError(Failure.RECOGNIZER, failure)
