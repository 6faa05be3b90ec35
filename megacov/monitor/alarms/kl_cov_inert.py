"""KL-Cov selects tokens and its penalty has no gradient."""

from __future__ import annotations

from collections.abc import Iterator

from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms.settings import AlarmSettings
from megacov.monitor.alarms.window import at_common_steps, episodes, held, series_of
from megacov.monitor.history import History

_HOLD = 5
_SELECTED_TAG, _PENALTY_TAG = "policy/kl_selected_fraction", "policy/kl_penalty"
_LEAST_PENALTY = 1e-9  # nats a selected token: far below what the smallest optimizer step gives


def kl_cov_inert(history: History, settings: AlarmSettings) -> Iterator[Alarm]:
    """In 5 logged steps in a row tokens are selected, and the penalty is 0, or a rollout has one optimizer step.

    The penalty is a function of d = log_prob - old log_prob with gradient 0 at d = 0, and d is 0 until an optimizer
    step has been applied. With one optimizer step a rollout KL-Cov therefore is the plain policy gradient; rounding
    may make d differ from 0 there, so the setting counts where it is known.

    Args:
        history: metrics of a run.
        settings: thresholds.

    Yields:
        The alarm, once an episode.
    """
    steps, (selected, penalties) = at_common_steps(series_of(history, _SELECTED_TAG), series_of(history, _PENALTY_TAG))
    is_single = settings.updates_per_rollout == 1
    is_inert = (selected > 0) & ((penalties <= _LEAST_PENALTY * selected) | is_single)
    for start, end in episodes(held(is_inert, _HOLD), ~is_inert):
        why = "batch.updates_per_rollout is 1" if is_single else "the policy does not move between the optimizer steps"
        yield Alarm(
            "kl_cov_inert",
            int(steps[start]),
            f"{_PENALTY_TAG} is {penalties[start]:.2g} nats in {_HOLD} logged steps, though {selected[start]:.2%} of "
            f"the tokens are selected; {why}",
            "the penalty has gradient 0 where the policy is still the old one, so KL-Cov changes nothing",
            "raise batch.updates_per_rollout above 1, or algorithm.loss.kl_coef and optimizer.lr above 0",
            None if end is None else int(steps[end]),
        )
