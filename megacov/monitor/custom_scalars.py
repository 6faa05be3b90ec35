"""The page of charts that a run lays out in TensorBoard, from what matters first to what should stay at 0."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from megacov.monitor.tags import TAGS

# Written by evaluations, into a folder of their own, which TensorBoard shows as another run.
EVALUATION_PATTERNS = {
    "right answers (share)": r"eval/.*/(avg|pass|maj)@\d+$",
    "length of responses (tokens)": r"eval/.*/response_length$",
    "truncated responses (share)": r"eval/.*/truncated_share$",
    "negative log-prob of responses (nats)": r"eval/.*/negative_log_prob$",
}


def _chart(*tags: str) -> list[Any]:
    """One chart with a line per tag. TensorBoard matches a regular expression from a tag's start."""
    _check(*tags)
    return ["Multiline", [f"{re.escape(tag)}$" for tag in tags]]


def _margin(value: str, low: str, high: str) -> list[Any]:
    """One line with a band around it. These tags are names, not expressions."""
    _check(value, low, high)
    return ["Margin", [value, low, high]]


def _check(*tags: str) -> None:
    for tag in tags:
        assert tag in TAGS and TAGS[tag].kind == "scalar", f"{tag} is no declared scalar"


def _declared(start: str, end: str = "") -> tuple[str, ...]:
    return tuple(tag for tag in TAGS if tag.startswith(start) and tag.endswith(end) and TAGS[tag].kind == "scalar")


_PAGE: dict[str, dict[str, list[Any]]] = {
    "Entropy and reward": {
        "reward, and its ceiling where the entropy law holds": _chart("reward/mean", "law/ceiling"),
        "entropy (nats)": _chart("entropy/token_mean", "entropy/sequence_mean"),
        "ceiling of the entropy law, 95 %": _margin("law/ceiling", "law/ceiling_low", "law/ceiling_high"),
        "coefficients of the law": _chart("law/a", "law/b"),
        "distance of the rewards from the law": _chart("law/rmse"),
    },
    "Covariance and selection": {
        "covariance by tail (nats)": _chart(*_declared("cov/top_")),
        "mean covariance (nats)": _chart("cov/mean"),
        "quadrants of the tokens (share)": _chart(*_declared("cov/quadrant_")),
        # Apart: one scale would make PPO, whose clip cuts far more tokens, look like the most restrained algorithm.
        "tokens that the covariance method acts on (share)": _chart("selection/effective_ratio"),
        "tokens that PPO's clip cuts (share)": _chart("policy/ppo_clip_fraction"),
        "tokens that Clip-Cov draws from": _chart("selection/band_population"),
        "range of the ratio that BAPO found": _chart("selection/bapo_lower", "selection/bapo_upper"),
        "smallest selected score (nats)": _chart("selection/threshold"),
        "quadrants of the selected tokens (share)": _chart(*_declared("selection/quadrant_")),
    },
    "Where it happens": {
        "covariance by accuracy of the prompt (nats)": _chart(*_declared("cov_by_accuracy/covariance_")),
        "selected by accuracy of the prompt (share)": _chart(*_declared("cov_by_accuracy/selected_")),
        "covariance by position (nats)": _chart(*_declared("cov_by_position/covariance_")),
        "entropy by position (nats)": _chart(*_declared("cov_by_position/entropy_")),
        "selected by position (share)": _chart(*_declared("cov_by_position/selected_")),
    },
    "Predicted against observed change of entropy": {
        "observed (nats)": _chart(*_declared("theorem/observed")),
        "correlation": _chart(*_declared("theorem/", "_correlation")),
        "signs that agree (share)": _chart(*_declared("theorem/", "_same_sign")),
    },
    "Controller": {
        "entropy at temperature 1, and its target (nats)": _chart("control/measured", "control/target"),
        "value that the controller sets": _chart("control/value"),
        "sum that the controller keeps": _chart("control/integral"),
    },
    "Updates": {
        "norm of the gradient": _chart("policy/grad_norm"),
        "distance from the old policy (nats)": _chart("policy/k1", "policy/k1_abs", "policy/k3"),
        "other clips (share)": _chart(*(tag for tag in _declared("policy/", "_clip_fraction") if "ppo" not in tag)),
        "KL to the reference (nats)": _chart("policy/ref_kl"),
        "loss": _chart("policy/loss"),
        "learning rate": _chart("policy/lr"),
    },
    "Responses": {
        "length (tokens)": _chart("rollout/length_mean", "rollout/length_max"),
        "truncated (share)": _chart("rollout/truncated_fraction"),
        "groups without a difference (share)": _chart(
            "reward/all_right_groups", "reward/all_wrong_groups", "reward/equal_groups"
        ),
        "groups dropped": _chart("rollout/dropped_groups"),
        "without a verdict (share)": _chart("reward/verifier_failed"),
    },
    "Servers against the trainer": {
        "mismatch of log-probs (nats)": _chart("rollout/mismatch_k1", "rollout/mismatch_k3"),
        "mean mismatch, without sign (nats)": _chart("rollout/mismatch_k1_abs"),
        "largest mismatch (nats)": _chart("rollout/mismatch_max"),
        "weight of the correction": _chart("rollout/importance_weight"),
        "age of the weights that sampled (versions)": _chart("rollout/version_lag", "rollout/version_lag_max"),
    },
    "Evaluation": {title: ["Multiline", [pattern]] for title, pattern in EVALUATION_PATTERNS.items()},
    "Speed": {
        "parts of a step (s)": _chart(
            *("perf/step_s", "perf/rollout_s", "perf/log_probs_s", "perf/update_s", "perf/weight_sync_s")
        ),
        "tokens a second": _chart("perf/tokens_per_s"),
        "parts of a push of weights (s)": _chart(*_declared("perf/weight_sync_", "_s")),
        "verifiers (s)": _chart("perf/verifier_wait_s", "perf/verifier_call_s"),
        "memory (bytes)": _chart("perf/memory_bytes"),
        "saving (s)": _chart("perf/save_s"),
    },
    "Health": {
        "optimizer steps left out": _chart("health/skipped_updates"),
        "failed saves": _chart("health/failed_saves"),
        "servers in service": _chart("rollout/servers"),
        "calls and servers that failed": _chart("rollout/retries", "rollout/failovers", "rollout/server_restarts"),
        "responses thrown away": _chart("rollout/wrong_version", "rollout/aborted", "rollout/stale_dropped"),
        "verifiers that failed (responses)": _chart(
            *(tag for tag in _declared("reward/verifier_") if tag != "reward/verifier_failed")
        ),
    },
}


def lay_out(*, without: Collection[str] = ()) -> dict[str, dict[str, list[Any]]]:
    """The page without charts that stay empty, because the run writes none of their tags.

    Args:
        without: beginnings of tags that the run does not write, such as "law/".

    Returns:
        Charts by their titles, by the titles of their sections, as `SummaryWriter.add_custom_scalars` takes them. Runs
        that TensorBoard shows together share one page, so a chart that is drawn has all its tags.
    """
    absent = tuple(map(re.escape, without))
    drawn = {
        section: {
            title: chart for title, chart in charts.items() if not all(tag.startswith(absent) for tag in chart[1])
        }
        for section, charts in _PAGE.items()
    }
    return {section: charts for section, charts in drawn.items() if charts}
