"""The charts of a report, by section. A tag that the run does not have is left out."""

from __future__ import annotations

from collections.abc import Mapping

from megacov.monitor.breakdown_tags import POSITION_CLASSES
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import Series
from megacov.monitor.report.charts import Chart, draw

_QUADRANTS = {
    "advantage > 0, likely": "pos_adv_high_lp",
    "advantage > 0, unlikely": "pos_adv_low_lp",
    "advantage < 0, likely": "neg_adv_high_lp",
    "advantage < 0, unlikely": "neg_adv_low_lp",
}
_ACCURACIES = {"none right": "000", "to 25 %": "001_025", "to 50 %": "026_050", "to 75 %": "051_075"} | {
    "below 100 %": "076_099",
    "all right": "100",
}
_POSITIONS = {f"from {int(first):,}": first for first in POSITION_CLASSES}
_LIKELY = "Likely: a log-prob at or above the mean. Likely tokens of positive advantage, and unlikely ones of negative \
advantage, tend to sharpen the policy; the others tend to flatten it."

COVARIANCE = (
    Chart(
        "cov-tails",
        "Covariance by tail",
        "nats",
        {f"top {percent} %": f"cov/top_{percent}pct" for percent in ("0.02", "0.2", "2", "20", "50")},
        "Mean covariance of log-prob and advantage over the tokens with the largest. A handful of tokens causes most "
        "of the fall of entropy if the first lines lie far above the others.",
    ),
    Chart("cov-mean", "Covariance of all tokens", "nats", {"mean": "cov/mean", "standard deviation": "cov/std"}),
    Chart(
        "cov-quadrants",
        "Tokens by advantage and likelihood",
        "share of tokens",
        {name: f"cov/quadrant_{tag}" for name, tag in _QUADRANTS.items()},
        _LIKELY,
    ),
)
WHERE = (
    Chart(
        "cov-accuracy",
        "Covariance by accuracy of the group",
        "nats",
        {name: f"cov_by_accuracy/covariance_{tag}" for name, tag in _ACCURACIES.items()},
        "Mean covariance of the tokens in groups of which this share is right.",
    ),
    Chart(
        "cov-position",
        "Covariance by position in the response",
        "nats",
        {name: f"cov_by_position/covariance_{tag}" for name, tag in _POSITIONS.items()},
        "Mean covariance of the tokens from a position on, up to the next one in the list.",
    ),
    Chart(
        "entropy-accuracy",
        "Entropy by accuracy of the group",
        "nats",
        {name: f"cov_by_accuracy/entropy_{tag}" for name, tag in _ACCURACIES.items()},
    ),
    Chart(
        "entropy-position",
        "Entropy by position in the response",
        "nats",
        {name: f"cov_by_position/entropy_{tag}" for name, tag in _POSITIONS.items()},
    ),
)
THEOREM = (
    Chart(
        "theorem-observed",
        "Change of entropy by an optimizer step",
        "nats",
        {"observed": "theorem/observed", "along the step taken": "theorem/directional"},
        "Observed on the same tokens after the step, and predicted to first order from the step itself.",
    ),
    Chart(
        "theorem-predicted",
        "Change of entropy for a step of size 1 on the logits",
        "nats",
        {
            "sampled covariance": "theorem/covariance",
            "centred in each state": "theorem/centred",
            "plain gradient step": "theorem/gradient",
        },
        "Predicted to first order. Compare them with what was observed by correlation, not by size.",
    ),
    Chart(
        "theorem-correlation",
        "Correlation of predicted and observed changes",
        "correlation",
        {
            "sampled covariance": "theorem/covariance_correlation",
            "centred in each state": "theorem/centred_correlation",
            "plain gradient step": "theorem/gradient_correlation",
            "along the step taken": "theorem/directional_correlation",
        },
        "Over a window of measurements.",
    ),
)
SELECTION = (
    Chart(
        "selection-ratio",
        "Tokens that the covariance method acts on",
        "share of tokens",
        {"selected": "selection/effective_ratio"},
    ),
    Chart(
        "selection-counts",
        "Selected tokens, and those to choose from",
        "tokens",
        {"selected": "selection/count", "in the band of Clip-Cov": "selection/band_population"},
    ),
    Chart("ppo-clip", "Tokens that PPO's clip cuts", "share of tokens", {"cut": "policy/ppo_clip_fraction"}),
    Chart(
        "selection-threshold",
        "Smallest selected score",
        "nats",
        {"threshold": "selection/threshold", "distance to the next token": "selection/margin"},
    ),
    Chart(
        "selection-quadrants",
        "Selected tokens by advantage and likelihood",
        "share of the selected",
        {name: f"selection/quadrant_{tag}" for name, tag in _QUADRANTS.items()},
        _LIKELY,
    ),
)
LENGTHS = (
    Chart("lengths", "Length of the responses", "tokens", {"mean": "rollout/length_mean", "max": "rollout/length_max"}),
    Chart(
        "truncated",
        "Responses that end at a length limit",
        "share of responses",
        {"truncated": "rollout/truncated_fraction"},
    ),
)
MISMATCH = (
    Chart(
        "mismatch",
        "Mismatch of server and trainer",
        "nats",
        {"mean of |m|": "rollout/mismatch_k1_abs", "KL (k3)": "rollout/mismatch_k3", "KL (k1)": "rollout/mismatch_k1"},
        "m is the log-prob by the rollout server minus that by the trainer. It is rounding where both have the same "
        "weights, and more where responses are older than the weights in training.",
    ),
    Chart("mismatch-max", "Largest mismatch of a token", "nats", {"largest |m|": "rollout/mismatch_max"}),
    Chart(
        "importance",
        "Weight of the rollout correction",
        "mean weight",
        {"importance weight": "rollout/importance_weight"},
    ),
)


def entropy_and_reward(scalars: Mapping[str, Series]) -> str:
    """Entropy, and reward with that of each source."""
    entropy = Chart(
        "entropy",
        "Entropy",
        "nats",
        {"every token equal": ENTROPY_TAG, "every response equal": "entropy/sequence_mean"},
        "The policy's, over the whole vocabulary, before the first optimizer step of each step.",
    )
    sources = {tag.removeprefix(f"{REWARD_TAG}_"): tag for tag in scalars if tag.startswith(f"{REWARD_TAG}_")}
    reward = Chart("reward", "Reward", "reward", {"all responses": REWARD_TAG} | sources)
    groups = Chart(
        "groups",
        "Groups that teach nothing",
        "share of groups",
        {"all right": "reward/all_right_groups", "all wrong": "reward/all_wrong_groups"},
    )
    return draw_all((entropy, reward, groups), scalars)


def draw_all(charts: tuple[Chart, ...], scalars: Mapping[str, Series]) -> str:
    """Those of the charts for which the run has a tag; "" if there is none."""
    return "".join(draw(chart, scalars) for chart in charts)
