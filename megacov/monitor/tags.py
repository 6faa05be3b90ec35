"""The one table of everything a run logs. A tag that is not here cannot be written.

`python -m megacov.monitor.tags > docs/metrics.md` renders the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megacov.losses import LOSSES, SHARED_METRICS, TERM_METRICS, Metric

Denominator = Literal["tokens", "sequences", "groups", "none"]
Kind = Literal["scalar", "histogram", "text"]


@dataclass(frozen=True, slots=True)
class Tag:
    """One metric.

    name: `section/metric`, as TensorBoard shows it.
    meaning: one sentence.
    unit: of the value; "share" is a fraction in [0, 1].
    denominator: what the value is a mean over; "none" for sums, extremes and settings.
    kind: how TensorBoard stores it.
    """

    name: str
    meaning: str
    unit: str
    denominator: Denominator
    kind: Kind = "scalar"


def metric_tags(metrics: Mapping[str, Metric]) -> tuple[Tag, ...]:
    """Tags of metrics that a loss declares: means over the tokens of all updates of a step that were applied."""
    return tuple(Tag(f"policy/{name}", metric.meaning, metric.unit, "tokens") for name, metric in metrics.items())


def _loss_tags() -> tuple[Tag, ...]:
    """Tags of all metrics of megacov's own losses; several losses may share one."""
    metrics = SHARED_METRICS | {name: metric for loss in LOSSES.values() for name, metric in loss.metrics.items()}
    return metric_tags(metrics | TERM_METRICS)


# "Tokens" are loss tokens of the whole step: every rank, every micro-batch.
_TABLE = (
    Tag("run/config", "The resolved configuration.", "YAML", "none", "text"),
    # entropy: of the policy before the first update of the step.
    Tag("entropy/token_mean", "Entropy at the rollout temperature; every token counts alike.", "nats", "tokens"),
    Tag(
        "entropy/sequence_mean", "Entropy at the rollout temperature; every response counts alike.", "nats", "sequences"
    ),
    Tag("entropy/token_mean_t1", "Entropy at temperature 1; every token counts alike.", "nats", "tokens"),
    Tag("entropy/sequence_mean_t1", "Entropy at temperature 1; every response counts alike.", "nats", "sequences"),
    Tag(
        "entropy/token_mean_before_filter",
        "Mean of -log_prob of the sampled tokens, dropped groups included: an estimate from the rollout's log-probs.",
        "nats",
        "tokens",
    ),
    # cov: (log_prob - mean log_prob) * (advantage - mean advantage) of each token, means over the rollout batch.
    Tag("cov/mean", "Mean covariance; above 0, the update lowers the entropy.", "nats", "tokens"),
    Tag("cov/std", "Standard deviation of the covariance.", "nats", "tokens"),
    Tag("cov/top_0.02pct", "Mean covariance of the top 0.02 % of the tokens.", "nats", "tokens"),
    Tag("cov/top_0.2pct", "Mean covariance of the top 0.2 % of the tokens.", "nats", "tokens"),
    Tag("cov/top_2pct", "Mean covariance of the top 2 % of the tokens.", "nats", "tokens"),
    Tag("cov/top_20pct", "Mean covariance of the top 20 % of the tokens.", "nats", "tokens"),
    Tag("cov/top_50pct", "Mean covariance of the top 50 % of the tokens.", "nats", "tokens"),
    Tag("cov/quadrant_pos_adv_high_lp", "Advantage > 0, log-prob at or above the mean: sharpens.", "share", "tokens"),
    Tag("cov/quadrant_pos_adv_low_lp", "Advantage > 0, log-prob below the mean: flattens.", "share", "tokens"),
    Tag("cov/quadrant_neg_adv_high_lp", "Advantage < 0, log-prob at or above the mean: flattens.", "share", "tokens"),
    Tag("cov/quadrant_neg_adv_low_lp", "Advantage < 0, log-prob below the mean: sharpens.", "share", "tokens"),
    Tag(
        "cov/histogram", "Covariance of all tokens, in bins that grow with the magnitude.", "nats", "none", "histogram"
    ),
    # selection: the tokens that the covariance method acts on, in the last update of the step.
    Tag("selection/count", "Selected tokens.", "tokens", "none"),
    Tag("selection/effective_ratio", "Selected tokens over all tokens of the scope.", "share", "tokens"),
    Tag("selection/threshold", "Smallest selected score; of selections by rank.", "nats", "none"),
    Tag(
        "selection/margin", "Smallest selected score minus the largest left out; of selections by rank.", "nats", "none"
    ),
    Tag(
        "selection/band_population", "Tokens that Clip-Cov draws from: in the band, not yet clipped.", "tokens", "none"
    ),
    Tag(
        "selection/overlap_micro_batch",
        "Selected tokens that a selection in each micro-batch alone would also have picked, over selected tokens.",
        "share",
        "tokens",
    ),
    Tag(
        "selection/quadrant_pos_adv_high_lp",
        "Selected tokens of all updates that are in this quadrant, over selected tokens.",
        "share",
        "tokens",
    ),
    Tag(
        "selection/quadrant_pos_adv_low_lp",
        "Selected tokens of all updates that are in this quadrant, over selected tokens.",
        "share",
        "tokens",
    ),
    Tag(
        "selection/quadrant_neg_adv_high_lp",
        "Selected tokens of all updates that are in this quadrant, over selected tokens.",
        "share",
        "tokens",
    ),
    Tag(
        "selection/quadrant_neg_adv_low_lp",
        "Selected tokens of all updates that are in this quadrant, over selected tokens.",
        "share",
        "tokens",
    ),
    # policy: d = log_prob - old log_prob, where old is the policy before the first update of the step.
    Tag(
        "policy/loss",
        "Mean over the updates of the step that were applied of the loss that is minimised, with its terms; "
        "algorithm.aggregation sets what each is a mean over.",
        "-",
        "none",
    ),
    *_loss_tags(),
    Tag(
        "policy/kept_fraction",
        "Loss tokens that entropy mask and rollout correction keep, in all updates of the step; the other policy, cov "
        "and selection tags that are means over tokens are over kept tokens alone.",
        "share",
        "tokens",
    ),
    Tag(
        "policy/grad_norm",
        "Mean over the updates of the step that were applied of the gradient's norm before clipping.",
        "-",
        "none",
    ),
    Tag("policy/lr", "Learning rate of the last update of the step that was applied.", "-", "none"),
    # reward: of every judged response, those of groups that filtering then drops included.
    Tag("reward/mean", "Mean reward.", "reward", "sequences"),
    Tag("reward/std", "Standard deviation of the reward over all responses.", "reward", "sequences"),
    Tag("reward/min", "Lowest reward.", "reward", "none"),
    Tag("reward/max", "Highest reward.", "reward", "none"),
    Tag("reward/all_right_groups", "Groups in which every response has the best reward.", "share", "groups"),
    Tag("reward/all_wrong_groups", "Groups in which every response has the worst reward.", "share", "groups"),
    # rollout
    Tag("rollout/length_mean", "Mean length of the responses.", "tokens", "sequences"),
    Tag("rollout/length_max", "Length of the longest response.", "tokens", "none"),
    Tag("rollout/truncated_fraction", "Responses cut at the maximum length.", "share", "sequences"),
    Tag(
        "rollout/mismatch_k1",
        "Mean of rollout log_prob - old log_prob: unbiased for KL(rollout || trainer).",
        "nats",
        "tokens",
    ),
    Tag("rollout/mismatch_k1_abs", "Mean of |rollout log_prob - old log_prob|.", "nats", "tokens"),
    Tag("rollout/mismatch_max", "Largest |rollout log_prob - old log_prob|.", "nats", "none"),
    Tag("rollout/mismatch_k3", "Unbiased for KL(rollout || trainer), never below 0.", "nats", "tokens"),
    Tag(
        "rollout/importance_weight",
        "Mean weight of the rollout correction, 1 without one; 0 counts for a token that it leaves out.",
        "-",
        "tokens",
    ),
    Tag("rollout/retries", "Requests that were sent again.", "requests", "none"),
    Tag("rollout/failovers", "Requests that went on to another server when one was lost.", "requests", "none"),
    Tag("rollout/servers", "Servers that serve at the end of a rollout.", "servers", "none"),
    Tag("rollout/server_restarts", "Servers that were lost and started again.", "restarts", "none"),
    Tag("rollout/dropped_groups", "Groups dropped because all their rewards were equal.", "groups", "none"),
    Tag("rollout/refill_rounds", "Further rounds of prompts that replaced dropped groups.", "rounds", "none"),
    Tag(
        "rollout/aborted",
        "Responses that the server aborted unasked, sampled again or gone on with.",
        "responses",
        "none",
    ),
    Tag("rollout/wrong_version", "Responses from other weights, thrown away.", "responses", "none"),
    Tag("rollout/empty", "Responses without a token.", "responses", "none"),
    Tag("rollout/groups", "Groups that were trained on.", "groups", "none"),
    Tag("rollout/carried", "Responses finished or begun that were left for the next step.", "responses", "none"),
    Tag(
        "rollout/continued_tokens",
        "Tokens of earlier steps in responses that were gone on with.",
        "tokens",
        "none",
    ),
    Tag("rollout/stale_dropped", "Responses begun under weights too old by now, sampled anew.", "responses", "none"),
    Tag(
        "rollout/version_lag",
        "Mean number of steps between the weights that sampled a token and those that are trained on it.",
        "versions",
        "tokens",
    ),
    Tag("rollout/version_lag_max", "Largest such number.", "versions", "none"),
    # perf: of one step; times are rank 0's, on the wall clock.
    Tag("perf/step_s", "The whole step.", "s", "none"),
    Tag("perf/rollout_s", "Waiting for samples and their rewards.", "s", "none"),
    Tag("perf/log_probs_s", "Forward-only passes: old log-probs, entropy, reference.", "s", "none"),
    Tag("perf/selection_s", "Covariance and selection, with their forward-only passes.", "s", "none"),
    Tag("perf/update_s", "Forward-backward passes and optimizer steps.", "s", "none"),
    Tag("perf/weight_sync_s", "Writing, sending and loading new weights.", "s", "none"),
    Tag("perf/weight_sync_pause_s", "Of the last push: until no server generates.", "s", "none"),
    Tag("perf/weight_sync_gather_s", "Of the last push: putting shards together, on all ranks.", "s", "none"),
    Tag("perf/weight_sync_transfer_s", "Of the last push: writing to disk, or sending.", "s", "none"),
    Tag("perf/weight_sync_load_s", "Of the last push: loading by the servers.", "s", "none"),
    Tag("perf/weight_sync_flush_s", "Of the last push: caches and checks, until all servers go on.", "s", "none"),
    Tag("perf/weight_sync_num_bytes", "Of the last push: all tensors, each counted once.", "bytes", "none"),
    Tag("perf/save_s", "What the last save held up training for.", "s", "none"),
    Tag("perf/metrics_s", "Metrics of the step.", "s", "none"),
    Tag("perf/tokens_per_s", "Prompt and response tokens of the step per second of the step.", "tokens/s", "none"),
    Tag("perf/tokens_per_s_per_rank", "The same over the number of ranks.", "tokens/s", "none"),
    Tag(
        "perf/memory_bytes",
        "Largest peak over the ranks: of the device's memory, or of the process where there is none.",
        "bytes",
        "none",
    ),
    Tag(
        "health/skipped_updates",
        "Updates of the step left out because they were not finite; policy and selection tags are of the others.",
        "updates",
        "none",
    ),
    Tag(
        "health/failed_saves",
        "Saves of a checkpoint that failed, of the run so far, or since it was resumed.",
        "saves",
        "none",
    ),
)

TAGS: dict[str, Tag] = {tag.name: tag for tag in _TABLE}

_SECTIONS = {
    "run": "What the run was asked to do.",
    "entropy": "Entropy of the policy over the whole vocabulary, before the first update of the step.",
    "cov": "`(log_prob - mean log_prob) * (advantage - mean advantage)` of each token, over the rollout batch, "
    "before its first update.",
    "selection": "The tokens that the covariance method acts on: in the last update of the step, or in `rollout_batch` "
    "scope in all of them.",
    "policy": "The updates of the step that were applied. `d = log_prob - old log_prob`; old is the policy before the "
    "first of them, in which d is 0. Which loss has which metric is in [losses.md](losses.md).",
    "reward": "Every judged response, those of groups that filtering then drops included.",
    "rollout": "How the responses came about.",
    "perf": "One step, in rank 0's wall-clock time.",
    "health": "What went wrong and was got over.",
}


def render_markdown() -> str:
    """The table as the text of docs/metrics.md.

    Returns:
        Markdown, ending in a newline.
    """
    lines = [
        "# Metrics",
        "",
        "<!-- Rendered by `python -m megacov.monitor.tags > docs/metrics.md`: change megacov/monitor/tags.py. -->",
        "",
        'Every tag that a run may write to `RUN/tensorboard`; writing another one is an error. "Mean over" is the',
        "denominator: loss *tokens*, *sequences* (responses) or *groups* (responses to one prompt) of the whole step,",
        "over all micro-batches and ranks; *none* marks sums, extremes and settings. A tag whose value would have no",
        "meaning in a run is absent from it, as PPO's clip fraction is under KL-Cov.",
    ]
    for section, sentence in _SECTIONS.items():
        lines += ["", f"## {section}", "", sentence, "", "| tag | meaning | unit | mean over |", "|---|---|---|---|"]
        lines += [
            f"| `{tag.name}` | {tag.meaning.replace('|', chr(92) + '|')} | {tag.unit} | {tag.denominator} |"
            for tag in _TABLE
            if tag.name.startswith(f"{section}/")
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_markdown(), end="")
