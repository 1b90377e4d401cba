"""What a site allows: its policy against the plan that a server sends.

Every check is written so that what cannot be compared is refused.
"""

from __future__ import annotations

from discreet.common.errors import RefusalCode, RefusedError
from discreet.common.plan import Plan
from discreet.common.site import PolicyConfig
from discreet.privacy.mechanism import mechanism_of


def check_policy(plan: Plan, policy: PolicyConfig) -> None:
    """Refuse a plan that this site does not allow. Epsilon is the ledger's to refuse.

    Raises:
        RefusedError: With the code for the other side and, for this side's log, the setting.
    """
    if policy.plans is not None and plan.fingerprint not in policy.plans:
        raise RefusedError(
            RefusalCode.PLAN,
            f"policy.plans does not hold the plan {plan.fingerprint}: add it to approve the plan",
        )
    for setting, allowed, got in (
        ("tasks", policy.tasks, plan.task.kind),
        ("models", policy.models, plan.model.kind),
    ):
        if allowed is not None and got not in allowed:
            raise _policy_error(f"policy.{setting} allows {', '.join(allowed)}, the plan has {got}")
    if not plan.training.rounds <= policy.max_rounds:
        raise _policy_error(
            f"policy.max_rounds is {policy.max_rounds}, the plan has {plan.training.rounds}"
        )
    if not plan.total_steps <= policy.max_steps:
        raise _policy_error(f"policy.max_steps is {policy.max_steps}, the plan {plan.total_steps}")
    if plan.federation.weights == "declared" and not policy.allow_declared_size:
        raise _policy_error("the plan asks for this site's size, policy.allow_declared_size is off")
    _check_privacy(plan, policy)


def _check_privacy(plan: Plan, policy: PolicyConfig) -> None:
    if not plan.is_private:
        if not policy.allow_without_privacy:
            raise _policy_error("the plan has privacy: none, policy.allow_without_privacy is off")
        return
    noise_multiplier = mechanism_of(plan).noise_multiplier
    if not noise_multiplier >= policy.min_noise_multiplier:
        raise _policy_error(
            f"policy.min_noise_multiplier is {policy.min_noise_multiplier}, "
            f"the plan's noise multiplier {noise_multiplier:.4g}"
        )


def _policy_error(message: str) -> RefusedError:
    return RefusedError(RefusalCode.POLICY, message)
