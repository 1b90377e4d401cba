"""Join tokens: once, in time, for one site, and never to be guessed."""

from __future__ import annotations

import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from discreet.common.certificates import common_name, make_key, make_request, read_certificate
from discreet.common.errors import DataError, DiscreetError, RefusedError
from discreet.common.join import parse_join_token
from discreet.deploy import token_file
from discreet.deploy.authority import Authority

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost"], clock=clock)


def secret_of(line: str) -> str:
    return parse_join_token(line).secret


def request_for(name: str) -> bytes:
    return make_request(make_key(), name)


def test_a_token_gets_its_site_a_certificate(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))

    certificate = read_certificate(authority.enrol(secret, request_for("north")), "enrolled")

    assert common_name(certificate) == "north"
    assert authority.site_allowed("north", certificate.serial_number)


def test_a_token_used_again_with_another_key_is_refused(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))
    authority.enrol(secret, request_for("north"))

    with pytest.raises(RefusedError, match="the join token was used"):
        authority.enrol(secret, request_for("north"))


def test_a_site_that_lost_the_answer_gets_the_same_again(authority: Authority) -> None:
    secret, key = secret_of(authority.token("north")), make_key()

    first = authority.enrol(secret, make_request(key, "north"))

    assert authority.enrol(secret, make_request(key, "north")) == first
    assert len([e for e in authority.certificates() if e.kind == "site"]) == 1


def test_after_a_revocation_nothing_is_given_again(authority: Authority) -> None:
    secret, key = secret_of(authority.token("north")), make_key()
    authority.enrol(secret, make_request(key, "north"))
    authority.revoke("north")

    with pytest.raises(RefusedError):
        authority.enrol(secret, make_request(key, "north"))


def test_a_token_is_worth_nothing_after_its_time(authority: Authority, clock: Clock) -> None:
    secret = secret_of(authority.token("north", hours=1))
    clock.now += timedelta(hours=1, seconds=1)

    with pytest.raises(RefusedError, match="has expired"):
        authority.enrol(secret, request_for("north"))


def test_a_token_is_worth_something_until_its_time(authority: Authority, clock: Clock) -> None:
    secret = secret_of(authority.token("north", hours=1))
    clock.now += timedelta(hours=1)

    assert authority.enrol(secret, request_for("north"))


@pytest.mark.parametrize("guess", ["", "x", "A" * 43, "\udcff", "é", "\0" * 43])
def test_a_guess_is_refused_and_says_nothing(guess: str, authority: Authority) -> None:
    authority.token("north")

    with pytest.raises(RefusedError, match="not known here") as refusal:
        authority.enrol(guess, request_for("north"))

    assert "north" not in str(refusal.value)


def test_the_hash_at_rest_is_no_token(authority: Authority, tmp_path: Path) -> None:
    authority.token("north")
    content = json.loads((tmp_path / "certs" / "tokens.json").read_text())

    with pytest.raises(RefusedError, match="not known here"):
        authority.enrol(content["tokens"][0]["hash"], request_for("north"))


def test_every_hash_is_compared_in_constant_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        authority.token(f"site {number}")
    compared = []

    def compare(known: str, wanted: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, wanted)

    monkeypatch.setattr(token_file, "compare_digest", compare)

    with pytest.raises(RefusedError):
        authority.enrol("A" * 43, request_for("site 0"))

    assert len(compared) == 5


def test_a_token_is_for_its_own_site(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))

    with pytest.raises(RefusedError, match="must be for the site 'north', is for 'south'"):
        authority.enrol(secret, request_for("south"))

    assert authority.enrol(secret, request_for("north")), "a wrong request must not use it up"


def test_a_request_that_is_none_does_not_use_the_token_up(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))

    for garbage in (b"", b"\xff" * 100, b"A" * (1 << 20)):
        with pytest.raises(RefusedError):
            authority.enrol(secret, garbage)

    assert authority.enrol(secret, request_for("north"))


def test_many_at_once_with_one_token_get_one_certificate(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))

    def attempt(_: int) -> bool:
        try:
            authority.enrol(secret, request_for("north"))
        except RefusedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(16)))

    assert outcomes.count(True) == 1


def test_a_site_with_a_certificate_needs_a_token_that_renews(authority: Authority) -> None:
    authority.enrol(secret_of(authority.token("north")), request_for("north"))

    with pytest.raises(DataError, match="--renew"):
        authority.token("north")

    renewed = authority.enrol(secret_of(authority.token("north", renew=True)), request_for("north"))
    assert common_name(read_certificate(renewed, "renewed")) == "north"


def test_two_tokens_for_one_site_make_one_certificate(authority: Authority) -> None:
    first, second = secret_of(authority.token("north")), secret_of(authority.token("north"))
    authority.enrol(first, request_for("north"))

    with pytest.raises(RefusedError, match="has a certificate until"):
        authority.enrol(second, request_for("north"))


def test_revoking_takes_the_unused_tokens_too(authority: Authority) -> None:
    secret = secret_of(authority.token("north"))

    authority.revoke("north")

    with pytest.raises(RefusedError, match="not known here"):
        authority.enrol(secret, request_for("north"))


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 24 * 365])
def test_a_token_s_time_is_bounded(hours: float, authority: Authority) -> None:
    with pytest.raises(DataError, match="--hours: must be > 0 and <= 720"):
        authority.token("north", hours=hours)


@pytest.mark.parametrize("name", ["", " north", "a\nb", "a\u200bb", "x" * 65, "ｎorth"])
def test_a_name_that_could_pass_for_another_gets_no_token(name: str, authority: Authority) -> None:
    with pytest.raises(DataError, match="site name: must be"):
        authority.token(name)


def test_open_tokens_are_listed_and_used_or_expired_ones_are_not(
    authority: Authority, clock: Clock
) -> None:
    authority.enrol(secret_of(authority.token("used")), request_for("used"))
    authority.token("expired", hours=1)
    clock.now += timedelta(hours=2)
    authority.token("open")

    assert [token.name for token in authority.tokens()] == ["open"]


def test_a_server_killed_between_two_writes_leaves_a_spent_token(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, key = secret_of(authority.token("north")), make_key()

    def die(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Authority, "_sign", die)
        with pytest.raises(KeyboardInterrupt):
            authority.enrol(secret, make_request(key, "north"))

    with pytest.raises(RefusedError, match="was used"):
        authority.enrol(secret, make_request(key, "north"))


def test_a_key_that_was_revoked_is_refused_to_a_token(authority: Authority) -> None:
    key = make_key()
    authority.enrol(secret_of(authority.token("north")), make_request(key, "north"))
    authority.revoke("north")

    with pytest.raises(DiscreetError, match="the key was revoked"):
        authority.enrol(secret_of(authority.token("north")), make_request(key, "north"))


def test_what_is_wrong_with_the_server_is_told_to_its_operator_alone(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = secret_of(authority.token("north"))
    (tmp_path / "certs" / "ca.key").unlink()

    with pytest.raises(RefusedError, match="its operator's log says why") as refusal:
        authority.enrol(secret, request_for("north"))

    assert str(tmp_path) not in str(refusal.value)
    assert "ca.key: no such file" in caplog.text
