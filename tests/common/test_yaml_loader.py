"""What a settings file may hold, and how it is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.errors import ConfigError
from discreet.common.yaml_loader import (
    MAX_FILE_BYTES,
    dump_yaml,
    parse_value,
    parse_yaml,
    read_yaml,
)


# Expected values: YAML 1.2.2, section 10.3.2, the table of the core schema.
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("null", None),
        ("~", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-19", -19),
        ("010", 10),
        ("0o7", 7),
        ("0x3A", 58),
        ("0.", 0.0),
        ("-0.0", -0.0),
        (".5", 0.5),
        ("+12e03", 12000.0),
        ("-2E+05", -200000.0),
        ("1e-5", 1e-5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    read = parse_value(written, source="test")

    assert read == value
    assert type(read) is type(value)


def test_nan_is_read_as_nan() -> None:
    read = parse_value(".nan", source="test")

    assert isinstance(read, float)
    assert math.isnan(read)


@pytest.mark.parametrize(
    "text",
    ["no", "No", "off", "on", "yes", "y", "12:30", "2020-01-02", "1_000", "none", "0b1", "="],
)
def test_what_yaml_1_1_would_convert_in_silence_stays_text(text: str) -> None:
    assert parse_value(text, source="test") == text


def test_labels_that_look_like_booleans_stay_labels() -> None:
    content = parse_yaml("labels: [no, yes, off]", source="test")

    assert content == {"labels": ["no", "yes", "off"]}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3:1"),
        ("a:\n  b: 1\n  b: 2", "run.yaml:3:3"),
        ("a: [{b: 1, b: 2}]", "run.yaml:1:12"),
    ],
)
def test_a_key_given_twice_is_an_error_at_its_place(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="run.yaml")

    assert str(caught.value).startswith(f"{place}: the key `")
    assert str(caught.value).endswith("is given twice: keep one")


def test_merging_may_replace_a_key() -> None:
    content = parse_yaml("base: &b {x: 1, y: 2}\nsite: {<<: *b, y: 3}", source="test")

    assert content["site"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["1: x", "true: x", "null: x", "[a]: x", "{a: 1}: x"])
def test_a_key_that_is_not_text_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="a key must be text: put it in quotes"):
        parse_yaml(text, source="run.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"^run\.yaml:1:6: expected"),
        ("a:\n\t- b", r"^run\.yaml:2:1: found character '\\t'"),
        ("a: 'b", r"^run\.yaml:1:6: found unexpected end"),
        ("a: *b", r"^run\.yaml:1:4: found undefined alias"),
        ("a: 1\n---\nb: 2", r"^run\.yaml:2:1: but found another document"),
        ("", r"^run\.yaml: is empty"),
        ("# only a comment\n", r"^run\.yaml: is empty"),
        ("[1, 2]", r"^run\.yaml: must hold `key: value` lines, got a list"),
        ("words", r"^run\.yaml: must hold `key: value` lines, got a single value"),
        ("a: \x07", r"^run\.yaml: holds a control character"),
        ("a: !!python/object/apply:os.getcwd []", "the tag .* is not known here"),
        ("a: !!timestamp 2020-01-02", "the tag .* is not known here"),
        ("a: !!bool perhaps", "a boolean must be true or false"),
        ("a: !!int many", "this is not a whole number"),
        ("a: !!float some", "this is not a number"),
        (f"a: {'9' * 5000}", "this is not a whole number of a usual size"),
    ],
)
def test_what_is_not_settings_gives_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, source="run.yaml")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 700,
        "a: " + "[" * 60 + "]" * 60,
        "a: &a {b: *a}",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]"
            for old, new in zip("abcdefg", "bcdefgh", strict=True)
        ),
    ],
    ids=["open", "deep", "endless", "unfolding"],
)
def test_what_would_eat_the_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="too deeply"):
        parse_yaml(text, source="run.yaml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfea\x00:\x00", "must be UTF-8 text"),
        (b"\x1f\x8b\x08\x00\xff", "must be UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "binary data"),
        (b"name: caf\xe9", "must be UTF-8 text"),
        (b"a" * (MAX_FILE_BYTES + 1), "not a settings file"),
    ],
)
def test_a_file_that_is_not_text_gives_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(data)

    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file: check the path"):
        read_yaml(tmp_path / "absent.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got a folder"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_path_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")

    assert read_yaml(path) == {"name": "x"}


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Cn"]))
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=5
)


@given(content=st.dictionaries(st.text("abcdef", min_size=1), _VALUES, min_size=1, max_size=3))
def test_what_is_written_is_read_back(content: dict[str, object]) -> None:
    written = dump_yaml(content)

    assert parse_yaml(written, source="test") == content


@pytest.mark.parametrize("text", ["no", "1e-5", "12:30", "on", "2020-01-02", "null", "", "0o7"])
def test_text_is_written_so_that_every_reader_takes_it_for_text(text: str) -> None:
    written = dump_yaml({"label": text})

    assert parse_yaml(written, source="test") == {"label": text}
    assert yaml.safe_load(written) == {"label": text}


def test_repeats_are_written_out() -> None:
    shared = ["a"]

    assert "&" not in dump_yaml({"x": shared, "y": shared})
