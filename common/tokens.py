"""Text to tokens: a public tokenizer, and the tensors that every model takes.

The tokenizer is an artefact with a fingerprint, the same at the server and at every site.
It is read, never fitted: nothing in this program derives a vocabulary from private text.
The embedded one was made by `discreet.deploy.make_tokenizer` from public text; its
provenance lies beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from discreet.common.errors import DataError
from discreet.common.plan import TokensConfig

if TYPE_CHECKING:
    import tokenizers

EMBEDDED_PATH = Path(__file__).parent / "data" / "tokenizer.json"
"""The tokenizer shipped with the program."""

MAX_FILE_BYTES = 64 << 20
"""A larger file is no tokenizer; those of today's largest vocabularies take 20 MiB."""

PADDING = 0
"""Token that fills rows up; models go by `lengths` and never look at it."""

EMPTY_TOKEN = "<empty>"  # noqa: S105 - a token of text, no secret
"""Stands for a text without tokens, so that every text has at least one."""

UNKNOWN_LABEL = -1
"""Label of a text whose class is not known."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts as numbers.

    Attributes:
        tokens: int64 [N, T]; row i holds `lengths[i]` tokens, then zeros.
        lengths: int64 [N], each at least 1 and at most T.
        labels: int64 [N]; -1 where the class is not known.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2 or not (
            len(self.tokens) == len(self.lengths) == len(self.labels)
        ):
            raise ValueError(
                f"tokens must be [N, T] with N lengths and labels, got {tuple(self.tokens.shape)}, "
                f"{tuple(self.lengths.shape)} and {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: torch.Tensor) -> Examples:
        """The examples at `index` (int64 [n]), with T cut to the longest of them."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 1
        return Examples(self.tokens[:, :longest][index], lengths, self.labels[index])


class Tokenizer:
    """A `tokenizer.json` of the `tokenizers` library, its bytes and their hash.

    Args:
        content: The file, whole.
        max_tokens: Tokens of one text that are kept.
        source: What an error calls the file.

    Raises:
        DataError: If `content` is not a tokenizer.
    """

    def __init__(self, content: bytes, max_tokens: int, *, source: str = "tokenizer") -> None:
        self._content = content
        self._backend = _backend_of(content, source)
        self._backend.enable_truncation(max_tokens)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{source}: must hold a vocabulary, got none: train the tokenizer")
        self.max_tokens = max_tokens
        # Files of others may leave holes in their numbering, so the count would be too small.
        self.vocabulary_size = max(vocabulary.values()) + 1
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._empty = vocabulary.get(EMPTY_TOKEN, PADDING)
        self._max_chars = (max_tokens + 1) * max(len(token) for token in vocabulary)

    @classmethod
    def load(cls, config: TokensConfig) -> Tokenizer:
        """The embedded tokenizer, or the file that the plan names.

        Raises:
            DataError: If the file is missing, is not a tokenizer, or does not hash to
                `tokens.sha256`.
        """
        path = config.path or EMBEDDED_PATH
        # A site reads the path that a server's plan names: a device would never end.
        is_odd = path.exists() and not (path.is_file() or path.is_dir())
        if is_odd or (path.is_file() and path.stat().st_size > MAX_FILE_BYTES):
            raise DataError(
                f"tokens.path: must be a file of at most {MAX_FILE_BYTES >> 20} MiB, got {path}, "
                "which is larger or no file: correct the path"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"tokens.path: must be a tokenizer.json that can be read, got {path} "
                f"({error.strerror}): correct the path, or leave it out for the embedded one"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if config.sha256 not in (None, found):
            raise DataError(
                f"tokens.sha256: must be the hash of {path}, which is {found}, got "
                f"{config.sha256}: use the file that the plan means, or correct the hash"
            )
        return cls(content, config.max_tokens, source=str(path))

    def encode(self, texts: Sequence[str], labels: Sequence[int] | None = None) -> Examples:
        """Turn texts into examples; the tokens after the first `max_tokens` are cut off.

        A text is first cut to as many characters as `max_tokens` + 1 of the longest tokens
        have, so that a text of megabytes costs no more than a page. That changes no token
        that is kept, unless a word without any break is as long as that, or a tokenizer of
        another make drops that much white space.

        Args:
            texts: N texts. An empty one, or one without any token, gets one special token.
            labels: N classes; none makes them all unknown.

        Returns:
            The examples, in the order of the texts, T as long as the longest one needs.
        """
        short = [_valid_unicode(text[: self._max_chars]) for text in texts]
        encoded = self._backend.encode_batch_fast(short, add_special_tokens=False)
        rows = [encoding.ids or [self._empty] for encoding in encoded]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        longest = max((len(row) for row in rows), default=1)
        padded = [row + [PADDING] * (longest - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)
        known = [UNKNOWN_LABEL] * len(rows) if labels is None else list(labels)
        return Examples(tokens, lengths, torch.tensor(known, dtype=torch.int64))

    def save(self, path: Path) -> None:
        """Write the tokenizer's file, byte for byte as it was read."""
        path.write_bytes(self._content)


def _backend_of(content: bytes, source: str) -> tokenizers.Tokenizer:
    # Its threads do not survive a fork; sites are trained side by side anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    # The library raises bare Exception and ValueError, whichever part failed.
    except Exception as error:
        raise DataError(
            f"{source}: must be a tokenizer.json of the tokenizers library, got something "
            f"else: save it with Tokenizer.save(path)"
        ) from error
    backend.no_padding()
    # "<pad>" inside a text is text: nobody can write a special token by typing its name.
    backend.encode_special_tokens = True
    return backend


def _valid_unicode(text: str) -> str:
    """The text, with "?" for halves of surrogate pairs, which no encoder takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
