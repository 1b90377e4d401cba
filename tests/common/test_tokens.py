"""Text to tokens: padding, cutting, empty and broken text, and the file's own checks."""

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.errors import DataError
from discreet.common.plan import TokensConfig
from discreet.common.tokens import EMBEDDED_PATH, MAX_FILE_BYTES, Examples, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TokensConfig(max_tokens=32))


@pytest.fixture(scope="module")
def backend() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(EMBEDDED_PATH))


def examples_of(lengths: list[int]) -> Examples:
    """Rows of the tokens 1, 2, 3, ... up to their length."""
    longest = max(lengths)
    rows = [[*range(1, n + 1), *([0] * (longest - n))] for n in lengths]
    return Examples(torch.tensor(rows), torch.tensor(lengths), torch.tensor([0] * len(lengths)))


# Examples


def test_selecting_cuts_the_padding_that_no_selected_text_needs() -> None:
    examples = examples_of([2, 5, 3])

    selected = examples.select(torch.tensor([2, 0]))

    assert selected.tokens.tolist() == [[1, 2, 3], [1, 2, 0]]
    assert selected.lengths.tolist() == [3, 2]


def test_selecting_nothing_gives_examples_without_rows() -> None:
    selected = examples_of([2, 5]).select(torch.tensor([], dtype=torch.int64))

    assert len(selected) == 0
    assert selected.tokens.shape == (0, 1)


def test_selecting_may_repeat_an_example() -> None:
    selected = examples_of([1, 2]).select(torch.tensor([1, 1]))

    assert selected.tokens.tolist() == [[1, 2], [1, 2]]


def test_examples_of_uneven_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[N, T\] with N lengths and labels"):
        Examples(torch.zeros(2, 3), torch.ones(2), torch.zeros(1))


def test_examples_without_a_time_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[N, T\]"):
        Examples(torch.zeros(2), torch.ones(2), torch.zeros(2))


# Encoding


def test_rows_are_padded_with_zeros_behind_their_length(tokenizer: Tokenizer) -> None:
    examples = tokenizer.encode(["one two three", "one"], [1, 0])

    assert examples.lengths.tolist() == [3, 1]
    assert examples.tokens[1].tolist() == [int(examples.tokens[0, 0]), 0, 0]
    assert examples.labels.tolist() == [1, 0]
    assert examples.tokens.dtype == examples.lengths.dtype == examples.labels.dtype == torch.int64


def test_labels_that_are_not_given_are_unknown(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["a", "b"]).labels.tolist() == [-1, -1]


def test_an_empty_text_is_one_special_token(tokenizer: Tokenizer) -> None:
    examples = tokenizer.encode(["", "word"])

    assert examples.lengths.tolist() == [1, 1]
    assert examples.tokens[0].tolist() == [1]


def test_no_texts_give_examples_without_rows(tokenizer: Tokenizer) -> None:
    examples = tokenizer.encode([])

    assert len(examples) == 0
    assert examples.tokens.shape == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Hello World, it's 10:30!",
        "你好，世界。",
        "😀👩‍👩‍👧 ok",
        "tab\tand\nline  two spaces",
        "é ß ½ ﷺ",
        "a",
    ],
)
def test_tokens_lead_back_to_the_text(
    tokenizer: Tokenizer, backend: tokenizers.Tokenizer, text: str
) -> None:
    examples = tokenizer.encode([text])

    assert backend.decode(examples.tokens[0].tolist()) == " " + text


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_leads_back_but_for_spaces_at_its_start(text: str) -> None:
    tokenizer = Tokenizer.load(TokensConfig(max_tokens=512))
    backend = tokenizers.Tokenizer.from_file(str(EMBEDDED_PATH))

    examples = tokenizer.encode(["x" + text])

    assert backend.decode(examples.tokens[0].tolist()) == " x" + text


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=50))
def test_any_string_is_encoded_within_the_bounds(tokenizer: Tokenizer, text: str) -> None:
    examples = tokenizer.encode([text])

    assert 1 <= int(examples.lengths[0]) <= 32
    assert int(examples.tokens.max()) < tokenizer.vocabulary_size


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer: Tokenizer) -> None:
    broken, mended = tokenizer.encode(["bad \ud83d here"]), tokenizer.encode(["bad ? here"])

    assert broken.tokens.tolist() == mended.tokens.tolist()


def test_case_is_kept(tokenizer: Tokenizer) -> None:
    examples = tokenizer.encode(["free", "FREE"])

    assert examples.tokens[0].tolist() != examples.tokens[1].tolist()


def test_a_first_word_is_the_same_token_as_in_the_middle(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode(["call now", "please call now"]).tokens.tolist()

    assert first[:2] == second[1:]


def test_every_digit_is_a_token_of_its_own(
    tokenizer: Tokenizer, backend: tokenizers.Tokenizer
) -> None:
    examples = tokenizer.encode(["in 1987x"])

    pieces = [backend.id_to_token(i) for i in examples.tokens[0].tolist()]
    assert pieces == ["Ġin", "Ġ1", "9", "8", "7", "x"]


def test_a_text_cannot_spell_the_padding_or_the_empty_token(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(["<pad><empty>"]).tokens

    assert 0 not in tokens
    assert 1 not in tokens


def test_a_placeholder_is_one_token_wherever_it_stands(
    tokenizer: Tokenizer, backend: tokenizers.Tokenizer
) -> None:
    examples = tokenizer.encode(["call <PHONE_NUMBER> or<URL>."])

    pieces = [backend.id_to_token(i) for i in examples.tokens[0].tolist()]
    assert pieces[:4] == ["Ġcall", "<PHONE_NUMBER>", "Ġor", "<URL>"]


# Cutting


def test_tokens_behind_the_first_max_tokens_are_cut_off() -> None:
    text = "one two three four five"

    whole = Tokenizer.load(TokensConfig(max_tokens=64)).encode([text])
    cut = Tokenizer.load(TokensConfig(max_tokens=3)).encode([text])

    assert cut.lengths.tolist() == [3]
    assert cut.tokens[0].tolist() == whole.tokens[0, :3].tolist()


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=100))
def test_cutting_characters_first_changes_no_kept_token(
    tokenizer: Tokenizer, words: list[str]
) -> None:
    text = " ".join([*words, "the quick brown fox " * 200])
    backend = tokenizers.Tokenizer.from_file(str(EMBEDDED_PATH))
    backend.encode_special_tokens = True

    kept = tokenizer.encode([text]).tokens[0].tolist()

    assert kept == backend.encode(text, add_special_tokens=False).ids[:32]


@pytest.mark.parametrize("text", ["x" * 10_000_000, "word 1 " * 1_500_000, " " * 10_000_000])
def test_ten_megabytes_cost_no_more_than_a_page(tokenizer: Tokenizer, text: str) -> None:
    start = time.process_time()

    examples = tokenizer.encode([text])

    assert len(examples.tokens[0]) <= 32
    # Guards against growth with the length: a hundred such texts whole take many minutes.
    assert time.process_time() - start < 60


# The file


def test_the_embedded_file_is_the_one_of_its_provenance() -> None:
    provenance = json.loads(EMBEDDED_PATH.with_suffix(".provenance.json").read_bytes())

    tokenizer = Tokenizer.load(TokensConfig())

    assert tokenizer.fingerprint == provenance["sha256"]
    assert tokenizer.vocabulary_size == provenance["vocabulary_size"] == 8192


def test_the_fingerprint_is_the_hash_of_the_file() -> None:
    expected = hashlib.sha256(EMBEDDED_PATH.read_bytes()).hexdigest()

    assert Tokenizer.load(TokensConfig()).fingerprint == expected


def test_a_saved_tokenizer_is_the_same_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"

    tokenizer.save(path)

    assert path.read_bytes() == EMBEDDED_PATH.read_bytes()
    again = Tokenizer.load(TokensConfig(path=path, sha256=tokenizer.fingerprint))
    assert again.fingerprint == tokenizer.fingerprint


def test_a_file_with_another_hash_is_refused() -> None:
    with pytest.raises(DataError, match=r"tokens.sha256: must be the hash of .*, got 0000"):
        Tokenizer.load(TokensConfig(sha256="0" * 64))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "none.json"

    with pytest.raises(DataError, match=re.escape("tokens.path: must be a tokenizer.json that")):
        Tokenizer.load(TokensConfig(path=path))


def test_a_device_and_a_file_without_bounds_are_refused_unread(tmp_path: Path) -> None:
    large = tmp_path / "tokenizer.json"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)

    for path in (Path("/dev/zero"), large):
        with pytest.raises(DataError, match=r"tokens.path: must be a file of at most 64 MiB"):
            Tokenizer.load(TokensConfig(path=path))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokens.path: .*directory"):
        Tokenizer.load(TokensConfig(path=tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00\xff", b'{"model": {"type": "BPE"}}', b"[1]"]
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"tokenizer.json: must be a tokenizer.json of the tok"):
        Tokenizer.load(TokensConfig(path=path))


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))

    with pytest.raises(DataError, match="must hold a vocabulary, got none"):
        Tokenizer.load(TokensConfig(path=path))


def test_a_foreign_tokenizer_with_holes_and_own_padding_is_taken(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 9}))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_padding(length=8, pad_id=9)
    backend.save(str(tmp_path / "own.json"))

    tokenizer = Tokenizer.load(TokensConfig(path=tmp_path / "own.json"))
    examples = tokenizer.encode(["b a b", ""])

    assert tokenizer.vocabulary_size == 10
    assert examples.tokens.tolist() == [[9, 0, 9], [0, 0, 0]]
    assert examples.lengths.tolist() == [3, 1]
