"""A site's policy: what it does not allow is refused, and under which code."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from site_parts import plan_of

from discreet.client.policy import check_policy
from discreet.common.errors import ConfigError, RefusalCode, RefusedError
from discreet.common.plan import Plan
from discreet.common.site import PolicyConfig
from discreet.privacy.mechanism import mechanism_of


def policy_of(**settings: object) -> PolicyConfig:
    return PolicyConfig.model_validate({"epsilon": 8.0, "delta": 1e-5, **settings})


def refusal_of(plan: Plan, policy: PolicyConfig) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        check_policy(plan, policy)
    return caught.value


def test_a_usual_policy_allows_a_usual_plan() -> None:
    check_policy(plan_of(), policy_of())


@pytest.mark.parametrize(
    ("setting", "value", "section"),
    [
        ("tasks", ["summarisation"], {}),
        ("tasks", [], {}),
        ("models", ["lstm", "gru"], {}),
        ("models", [], {}),
        ("max_rounds", 3, {}),
        ("max_steps", 4 * 3 - 1, {"training": {"steps_per_round": 3}}),
        ("min_noise_multiplier", 1000.0, {}),
        ("allow_without_privacy", False, {"privacy": "none"}),
        ("allow_declared_size", False, {"federation": {"weights": "declared"}}),
    ],
)
def test_what_a_setting_does_not_allow_is_refused_as_policy_and_the_setting_is_named(
    setting: str, value: object, section: Mapping[str, Mapping[str, object] | str]
) -> None:
    refusal = refusal_of(plan_of(**section), policy_of(**{setting: value}))

    assert refusal.code == RefusalCode.POLICY
    assert setting in str(refusal)


@pytest.mark.parametrize(
    ("setting", "value", "section"),
    [
        ("tasks", ["text-classification"], {}),
        ("models", ["lstm", "linear"], {}),
        ("max_rounds", 4, {}),
        ("max_steps", 4 * 3, {"training": {"steps_per_round": 3}}),
        ("allow_without_privacy", True, {"privacy": "none"}),
        ("allow_declared_size", True, {"federation": {"weights": "declared"}}),
    ],
)
def test_what_a_setting_just_allows_passes(
    setting: str, value: object, section: Mapping[str, Mapping[str, object] | str]
) -> None:
    check_policy(plan_of(**section), policy_of(**{setting: value}))


def test_the_noise_that_is_judged_is_the_noise_that_is_added() -> None:
    plan = plan_of()
    solved = mechanism_of(plan).noise_multiplier

    check_policy(plan, policy_of(min_noise_multiplier=solved))

    refusal = refusal_of(plan, policy_of(min_noise_multiplier=solved * 1.0001))
    assert refusal.code == RefusalCode.POLICY


def test_a_plan_that_is_approved_by_its_fingerprint_passes() -> None:
    plan = plan_of()

    check_policy(plan, policy_of(plans=["0" * 64, plan.fingerprint]))


@pytest.mark.parametrize("approved", [[], ["0" * 64]])
def test_a_plan_that_is_not_approved_is_refused_as_plan_and_its_fingerprint_told(
    approved: list[str],
) -> None:
    plan = plan_of()

    refusal = refusal_of(plan, policy_of(plans=approved))

    assert refusal.code == RefusalCode.PLAN
    assert plan.fingerprint in str(refusal)


def test_approving_a_plan_does_not_approve_it_with_one_number_changed() -> None:
    approved = policy_of(plans=[plan_of().fingerprint])

    refusal = refusal_of(plan_of(training={"learning_rate": 1.0001}), approved)

    assert refusal.code == RefusalCode.PLAN


def test_where_the_server_tests_is_no_part_of_what_a_site_approves() -> None:
    plan = plan_of()
    elsewhere = plan_of(evaluation={"data": {"path": "test.jsonl"}})

    check_policy(elsewhere, policy_of(plans=[plan.fingerprint]))


def test_approval_does_not_lift_the_other_settings() -> None:
    plan = plan_of(privacy="none")

    refusal = refusal_of(plan, policy_of(plans=[plan.fingerprint]))

    assert refusal.code == RefusalCode.POLICY


@pytest.mark.parametrize("setting", ["min_noise_multiplier", "max_rounds", "max_steps"])
def test_a_bound_that_is_not_a_number_refuses_every_plan(setting: str) -> None:
    # No file can say so; this is what keeps a later mistake from opening the door.
    policy = policy_of().model_copy(update={setting: float("nan")})

    assert refusal_of(plan_of(), policy).code == RefusalCode.POLICY


def test_noise_that_does_not_reach_the_plans_own_epsilon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.noise_multiplier"):
        check_policy(plan_of(privacy={"noise_multiplier": 0.01}), policy_of())
