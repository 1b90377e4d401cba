"""Makes the embedded tokenizer: `python -m discreet.deploy.make_tokenizer SOURCES_DIR OUT`.

SOURCES_DIR holds the public sets named in `SOURCES`, each file with the hash given there;
OUT is the tokenizer's file, and its provenance is written beside it. The same inputs and
the same release of the tokenizers library give the same bytes.

Every source may be redistributed (attribution in the provenance), and none of them is the
text of a demonstration: sms_spam and banking77 stand for private data there, so a
vocabulary fitted on them would leak what the demonstration claims to protect.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from discreet.common.errors import DataError

if TYPE_CHECKING:
    import tokenizers

VOCABULARY_SIZE = 8192
"""Tokens in all: small, for a site pays noise for each row of an embedding."""

LONGEST_TOKEN = 16
"""Bytes in the longest learned token: it bounds the characters that `max_tokens` can cover."""

SPECIAL_TOKENS = ("<pad>", "<empty>")
"""Numbers 0 and 1. They come from the program alone, never from what a text says."""

PLACEHOLDERS = (
    "<PERSON>",
    "<PHONE_NUMBER>",
    "<EMAIL_ADDRESS>",
    "<URL>",
    "<CREDIT_CARD>",
    "<LOCATION>",
    "<DATE_TIME>",
    "<ORGANIZATION>",
    "<IP_ADDRESS>",
    "<IBAN_CODE>",
    "<US_SSN>",
    "<ID>",
    "<AGE>",
    "<SECRET>",
    "<CRYPTO>",
    "<MEDICAL_LICENSE>",
    "<NRP>",
    "<UUID>",
    "<MAC_ADDRESS>",
    "<US_BANK_NUMBER>",
    "<US_DRIVER_LICENSE>",
    "<US_ITIN>",
    "<US_PASSPORT>",
    "<UK_NHS>",
)
"""What the scrubber leaves in place of an entity; one token each."""

MASK = "****"
"""What the scrubber's action `mask` leaves."""

# The words of GPT-2's tokenizer, but each digit alone: no number becomes one token, so the
# vocabulary cannot hold anybody's year of birth or house number.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of public text.

    Attributes:
        file: Its path below SOURCES_DIR, gzipped JSON lines.
        sha256: What it must hash to.
        field: The field that holds the text.
        max_chars: Characters taken, spread evenly over the file; it balances the sources.
        licence: Under which it is public.
        attribution: Who made it.
    """

    file: str
    sha256: str
    field: str
    max_chars: int
    licence: str
    attribution: str


SOURCES = (
    Source(
        file="ubuntu_irc/messages.jsonl.gz",
        sha256="faafa9c8e4cd1a939cf40d942b1e943409007914e10c2cede4bcd142cd81debd",
        field="text",
        max_chars=2_000_000,
        licence="CC-BY-4.0",
        attribution="J. K. Kummerfeld et al., irc-disentanglement, ACL 2019, P19-1374",
    ),
    Source(
        file="goemotions/train.jsonl.gz",
        sha256="3bccfd1f0a84f4534c526a301add365a6ae941abdcb33bd636286238bb74b4d2",
        field="text",
        max_chars=2_000_000,
        licence="Apache-2.0",
        attribution="D. Demszky et al., GoEmotions, ACL 2020, arXiv:2005.00547",
    ),
    Source(
        file="snips/train.jsonl.gz",
        sha256="59b92a7343a3fe4735a0befa1e0936743ee64f13a6d10c0a1e858edf45af689a",
        field="text",
        max_chars=600_000,
        licence="CC0-1.0",
        attribution="A. Coucke et al., Snips Voice Platform, arXiv:1805.10190",
    ),
    Source(
        file="gsm8k/train.jsonl.gz",
        sha256="d7741145657f4e52b75f63b9fb9469cb4ad3febd01d62a1068c75e33e04245c5",
        field="question",
        max_chars=600_000,
        licence="MIT",
        attribution="K. Cobbe et al., GSM8K, OpenAI, arXiv:2110.14168",
    ),
    Source(
        file="shakespeare_plays/speeches.jsonl.gz",
        sha256="3f4413a5513a53be77343d44774f3a80e176bd2e87b89395a54e13e81ae1d6dc",
        field="text",
        max_chars=400_000,
        licence="Public domain",
        attribution="W. Shakespeare",
    ),
    Source(
        file="tang_poems_zh/poems.jsonl.gz",
        sha256="f00e7289a0949232cab70f8a2c82f1a90235e550ce43c1f45f648eea0a0f4538",
        field="text",
        max_chars=200_000,
        licence="Public domain; compilation MIT",
        attribution="chinese-poetry contributors",
    ),
)
"""Where the embedded tokenizer comes from."""


def train(texts: Iterator[str], vocabulary_size: int = VOCABULARY_SIZE) -> tokenizers.Tokenizer:
    """Train a byte-level BPE tokenizer that takes any text, with the placeholders in it.

    Case is kept. A text begins with a space, so that its first word is the same token as
    in the middle. Bytes are the alphabet: nothing is ever unknown.

    Source:
        Sennrich et al. (2016), https://arxiv.org/abs/1508.07909; byte level and words as in
        Radford et al. (2019), GPT-2.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    # Two steps: one Replace with an empty match at the start panics in tokenizers 0.23.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A +"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The space before one is part of it: one token, not two.
    replaced = [AddedToken(token, lstrip=True, normalized=False) for token in (MASK, *PLACEHOLDERS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(replaced),
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),  # numbered from 0, in this order
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_TOKEN,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not among the special tokens: those are taken for plain text where a text spells them.
    tokenizer.add_tokens(replaced)
    return tokenizer


def read_source(source: Source, sources_dir: Path) -> list[str]:
    """The texts of one source: every n-th row, so that about `max_chars` are taken.

    Raises:
        DataError: If the file is missing or is not the one that `sha256` names.
    """
    path = sources_dir / source.file
    if not path.is_file():
        raise DataError(f"{path}: must be there, as make_tokenizer.SOURCES says: fetch it")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise DataError(f"{path}: must hash to {source.sha256}, got {found}: fetch that version")
    texts = [orjson.loads(line)[source.field] for line in gzip.decompress(content).splitlines()]
    stride = max(1, sum(map(len, texts)) // source.max_chars)
    return [without_addressee(text) for text in texts[::stride]]


def without_addressee(text: str) -> str:
    """The text without a leading "somebody: ", as chat has it: handles are no vocabulary."""
    return re.sub(r"\A\S{1,30}[:,] ", "", text)


def provenance(tokenizer: tokenizers.Tokenizer, content: bytes) -> bytes:
    """What the tokenizer was made from and with, as indented JSON."""
    import tokenizers

    record = {
        "schema": 1,
        "made_by": "python -m discreet.deploy.make_tokenizer SOURCES_DIR OUT",
        "statement": "Trained on the public text named here and on nothing else; never on "
        "private text, nor on the text of any demonstration.",
        "sha256": hashlib.sha256(content).hexdigest(),
        "vocabulary_size": tokenizer.get_vocab_size(),
        "tokenizers_version": tokenizers.__version__,
        "sources": [asdict(source) for source in SOURCES],
    }
    return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def main(arguments: Sequence[str]) -> None:
    """Train the tokenizer and write it, with its provenance beside it."""
    parser = argparse.ArgumentParser(prog="discreet.deploy.make_tokenizer", description=__doc__)
    parser.add_argument("sources_dir", type=Path, help="Folder with the public sets.")
    parser.add_argument("out", type=Path, help="The tokenizer's file.")
    options = parser.parse_args(arguments)

    texts = (text for s in SOURCES for text in read_source(s, options.sources_dir))
    tokenizer = train(texts)

    content = tokenizer.to_str(pretty=False).encode()
    options.out.write_bytes(content)
    options.out.with_suffix(".provenance.json").write_bytes(provenance(tokenizer, content))


if __name__ == "__main__":
    main(sys.argv[1:])
