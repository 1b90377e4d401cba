"""Join tokens as lines that people copy."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.certificates import make_key
from discreet.common.errors import DataError
from discreet.common.join import JoinToken, hash_of, new_secret, parse_join_token
from discreet.deploy.issue import make_authority

CA = make_authority(make_key(), datetime.now(UTC))
TOKEN = JoinToken(new_secret(), CA)


def test_a_token_reads_back() -> None:
    assert parse_join_token(TOKEN.line()) == TOKEN


def test_a_token_wrapped_by_a_mail_program_reads_back() -> None:
    line = TOKEN.line()
    wrapped = "\r\n  ".join(line[i : i + 72] for i in range(0, len(line), 72)) + "\n"

    assert parse_join_token(wrapped) == TOKEN


def test_a_token_is_one_line_without_characters_that_a_shell_reads() -> None:
    line = TOKEN.line()

    assert set(line) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def test_secrets_are_256_bits_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {43}  # 256 bits / 6 bits a character, up


def test_the_hash_is_sha256_of_the_secret() -> None:
    assert hash_of("abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_secret_is_in_no_repr() -> None:
    assert TOKEN.secret not in repr(TOKEN)


@pytest.mark.parametrize("line", ["", "discreet-join-1", "discreet-join-1.a.b", "x.y.z", "a" * 600])
def test_what_is_no_token_is_refused(line: str) -> None:
    with pytest.raises(DataError, match="join token: must be the whole line"):
        parse_join_token(line)


@settings(deadline=None)
@given(st.integers(0, len(TOKEN.line()) - 1))
def test_a_token_cut_off_is_refused_without_telling_it(length: int) -> None:
    with pytest.raises(DataError) as error:
        parse_join_token(TOKEN.line()[:length])

    assert TOKEN.secret not in str(error.value)
    assert error.value.__cause__ is None


def test_a_token_of_another_version_is_refused() -> None:
    with pytest.raises(DataError, match="begins with discreet-join-1"):
        parse_join_token(TOKEN.line().replace("discreet-join-1", "discreet-join-2"))


def test_the_authority_in_a_token_is_the_one_it_was_made_with() -> None:
    der = serialization.Encoding.DER

    ca = parse_join_token(TOKEN.line()).ca_pem

    wanted = load_pem_x509_certificate(CA).public_bytes(der)
    assert load_pem_x509_certificate(ca).public_bytes(der) == wanted
