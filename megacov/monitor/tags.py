"""The table of everything a run logs. A run cannot write a tag that is not here.

`python -m megacov.monitor.tags > docs/metrics.md` renders the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from megacov.losses import LOSSES, SHARED_METRICS, TERM_METRICS, Metric
from megacov.monitor.breakdown_tags import BREAKDOWN_TAGS
from megacov.monitor.control_tags import CONTROL_SECTION, CONTROL_TAGS
from megacov.monitor.law_tags import ALARM_TAGS, LAW_SECTIONS, LAW_TAGS
from megacov.monitor.perf_tags import PERF_TAGS
from megacov.monitor.sampling_tags import CURRICULUM_TAGS, OVER_SAMPLING_TAGS
from megacov.monitor.tag import Tag
from megacov.monitor.tag_sections import HEAD, SECTIONS
from megacov.monitor.theorem_tags import THEOREM_SECTION, THEOREM_TAGS
from megacov.selection import SELECTORS
from megacov.types import VERIFIER_FAILURES

_QUADRANTS = {
    "pos_adv_high_lp": "advantage > 0 and a log-prob at or above the mean",
    "pos_adv_low_lp": "advantage > 0 and a log-prob below the mean",
    "neg_adv_high_lp": "advantage < 0 and a log-prob at or above the mean",
    "neg_adv_low_lp": "advantage < 0 and a log-prob below the mean",
}


def metric_tags(metrics: Mapping[str, Metric]) -> tuple[Tag, ...]:
    """Tags of metrics that a loss declares: means over the kept tokens of all applied optimizer steps."""
    return tuple(Tag(f"policy/{name}", metric.meaning, metric.unit, "tokens") for name, metric in metrics.items())


def _loss_tags() -> tuple[Tag, ...]:
    """Tags of all metrics of megacov's own losses; several losses may share one."""
    metrics = SHARED_METRICS | {name: metric for loss in LOSSES.values() for name, metric in loss.metrics.items()}
    return metric_tags(metrics | TERM_METRICS)


# Which tokens a mean runs over is in the section's sentence, or in the row where a row differs.
_TABLE = (
    Tag("run/config", "The resolved configuration.", "YAML", "none", "text"),
    Tag("entropy/token_mean", "Entropy at the rollout temperature; every token counts equally.", "nats", "tokens"),
    Tag(
        "entropy/sequence_mean",
        "Entropy at the rollout temperature; every non-empty response counts equally.",
        "nats",
        "sequences",
    ),
    Tag("entropy/token_mean_t1", "Entropy at temperature 1; every token counts equally.", "nats", "tokens"),
    Tag(
        "entropy/sequence_mean_t1",
        "Entropy at temperature 1; every non-empty response counts equally.",
        "nats",
        "sequences",
    ),
    Tag(
        "entropy/token_mean_before_filter",
        "Mean of -log_prob by the server over all response tokens, dropped groups included. Estimates the "
        "entropy of the policies that sampled, unless top_p or top_k cut them.",
        "nats",
        "tokens",
    ),
    Tag("cov/mean", "Mean covariance.", "nats", "tokens"),
    Tag("cov/std", "Standard deviation of the covariance.", "nats", "tokens"),
    *(
        Tag(
            f"cov/top_{percent}pct",
            f"Mean over the top {percent} % of the tokens, at least one.",
            "nats",
            "tokens",
        )
        for percent in ("0.02", "0.2", "2", "20", "50")
    ),
    *(Tag(f"cov/quadrant_{name}", f"Tokens with {rule}.", "share", "tokens") for name, rule in _QUADRANTS.items()),
    Tag("cov/histogram", "Covariance of all tokens; bins widen with its magnitude.", "nats", "none", "histogram"),
    *BREAKDOWN_TAGS,
    Tag("selection/count", "Selected tokens.", "tokens", "none"),
    Tag("selection/effective_ratio", "Selected tokens over all tokens.", "share", "tokens"),
    Tag(
        "selection/threshold",
        "Smallest selected score. Absent for methods that do not take the largest (Clip-Cov, M2PO, BAPO, STEER) or "
        "that take them of each sign (Lp-Reg), and in micro_batch scope.",
        "nats",
        "none",
    ),
    Tag(
        "selection/margin",
        "Smallest selected score minus the largest other one. Absent where the threshold is.",
        "nats",
        "none",
    ),
    Tag(
        "selection/uninformative",
        "Selections of the step that KL-Cov left out since all covariances in scope are equal, as where every "
        "advantage is alike. Absent in micro_batch scope.",
        "selections",
        "none",
    ),
    Tag(
        "selection/band_population",
        "Tokens that Clip-Cov draws from: in the band, and not clipped by PPO.",
        "tokens",
        "none",
    ),
    Tag(
        "selection/overlap_micro_batch",
        "Share of the selected tokens that a selection in each micro-batch alone would select too. "
        "Absent in micro_batch scope.",
        "share",
        "tokens",
    ),
    *(
        Tag(f"selection/{name}", meaning, unit, "none")
        for selector in SELECTORS.values()
        for name, (meaning, unit) in selector.finds.items()
    ),
    *(
        Tag(
            f"selection/quadrant_{name}",
            f"Tokens with {rule}, over the tokens selected in all applied optimizer steps.",
            "share",
            "tokens",
        )
        for name, rule in _QUADRANTS.items()
    ),
    Tag(
        "policy/loss",
        "Loss that is minimised, entropy bonus and reference KL included: mean over the applied optimizer steps. "
        "The aggregation mode sets the denominator within one.",
        "-",
        "none",
    ),
    *_loss_tags(),
    Tag("policy/kept_fraction", "Kept tokens over all loss tokens of the rollout batch.", "share", "tokens"),
    Tag(
        "policy/advantage_abs",
        "|advantage| of a loss token of the rollout batch, with what entropy as a reward adds. Absent unless it adds "
        "something.",
        "-",
        "tokens",
    ),
    Tag(
        "policy/soft_advantage_abs",
        "|what entropy as a reward adds to the advantage| of a loss token of the rollout batch. Absent unless it adds "
        "something.",
        "-",
        "tokens",
    ),
    Tag(
        "policy/grad_norm",
        "L2 norm of the gradient before clipping: mean over the applied optimizer steps.",
        "-",
        "none",
    ),
    Tag("policy/lr", "Learning rate of the last applied optimizer step.", "-", "none"),
    Tag("reward/mean", "Mean reward.", "reward", "sequences"),
    Tag("reward/std", "Standard deviation of the reward over all responses.", "reward", "sequences"),
    Tag("reward/min", "Lowest reward.", "reward", "none"),
    Tag("reward/max", "Highest reward.", "reward", "none"),
    Tag("reward/all_right_groups", "Groups in which every reward is 1 or more.", "share", "groups"),
    Tag("reward/all_wrong_groups", "Groups in which every reward is 0 or less.", "share", "groups"),
    Tag("reward/overlong_penalty", "Mean that long responses lose; no other tag contains it.", "reward", "sequences"),
    Tag("reward/equal_groups", "Groups in which all rewards are one value between 0 and 1.", "share", "groups"),
    Tag("reward/verifier_failed", "Responses without a verdict; they score 0.", "share", "sequences"),
    *(Tag(f"reward/verifier_{kind}", meaning, "responses", "none") for kind, meaning in VERIFIER_FAILURES.items()),
    Tag("rollout/length_mean", "Mean length of the responses.", "tokens", "sequences"),
    Tag("rollout/length_max", "Length of the longest response.", "tokens", "none"),
    Tag("rollout/truncated_fraction", "Responses that end at a length limit.", "share", "sequences"),
    Tag(
        "rollout/mismatch_k1",
        "Mean of m: unbiased for KL(rollout || trainer) on tokens drawn from rollout.",
        "nats",
        "tokens",
    ),
    Tag("rollout/mismatch_k1_abs", "Mean of |m|.", "nats", "tokens"),
    Tag("rollout/mismatch_max", "Largest |m|.", "nats", "none"),
    Tag(
        "rollout/mismatch_k3", "Mean of exp(-m) - 1 + m: unbiased for the same KL, and never below 0.", "nats", "tokens"
    ),
    Tag(
        "rollout/importance_weight",
        "Mean weight of the rollout correction; 0 for a token that it masks, 1 without a correction.",
        "-",
        "tokens",
    ),
    Tag("rollout/retries", "HTTP calls that were sent to the same server again.", "requests", "none"),
    Tag(
        "rollout/failovers",
        "Times that a request was sent out anew because a server failed, or to another because one was busy.",
        "requests",
        "none",
    ),
    Tag("rollout/servers", "Servers in service when the batch is complete.", "servers", "none"),
    Tag(
        "rollout/server_restarts", "Times that a server was restarted while the batch was sampled.", "restarts", "none"
    ),
    Tag("rollout/dropped_groups", "Groups dropped because all their rewards are equal.", "groups", "none"),
    Tag(
        "rollout/refill_rounds",
        "Prompts beyond those wanted that dropped groups made necessary, divided by those wanted; at most "
        "`rollout.max_filter_rounds`.",
        "rounds",
        "none",
    ),
    Tag(
        "rollout/aborted",
        "Responses that a server aborted unasked. They are sampled again, or continued in partial rollouts.",
        "responses",
        "none",
    ),
    Tag(
        "rollout/wrong_version",
        "Responses thrown away because they came from other weights than expected.",
        "responses",
        "none",
    ),
    Tag("rollout/empty", "Judged responses without a token.", "responses", "none"),
    Tag("rollout/overlong_masked", "Truncated responses that carry no loss.", "responses", "none"),
    *OVER_SAMPLING_TAGS,
    Tag("rollout/groups", "Groups trained on.", "groups", "none"),
    Tag("rollout/carried", "Responses, begun or finished, that are left for the next step.", "responses", "none"),
    Tag(
        "rollout/continued_tokens",
        "Tokens of earlier steps in the responses that this rollout continued.",
        "tokens",
        "none",
    ),
    Tag(
        "rollout/stale_dropped",
        "Carried responses sampled anew because their weights are too old by now.",
        "responses",
        "none",
    ),
    Tag(
        "rollout/version_lag",
        "Version of the weights in training minus that which sampled the token; one version a step.",
        "versions",
        "tokens",
    ),
    Tag("rollout/version_lag_max", "Largest lag of any token.", "versions", "none"),
    *CURRICULUM_TAGS,
    *PERF_TAGS,
    Tag(
        "health/skipped_updates",
        "Optimizer steps left out because the gradient was not finite.",
        "optimizer steps",
        "none",
    ),
    Tag(
        "health/thinned_samples",
        "Steps before this one that lost values of tokens or texts to `monitor.samples_mb`, since the run was started "
        "or resumed.",
        "steps",
        "none",
    ),
    Tag("health/failed_saves", "Failed saves of a checkpoint since the run was started or resumed.", "saves", "none"),
    *LAW_TAGS,
    *ALARM_TAGS,
    *THEOREM_TAGS,
    *CONTROL_TAGS,
)

TAGS: dict[str, Tag] = {tag.name: tag for tag in _TABLE}


def render_markdown() -> str:
    """The table as the text of docs/metrics.md: Markdown, ending in a newline."""
    lines = [
        "# Metrics",
        "",
        "<!-- Rendered by `python -m megacov.monitor.tags > docs/metrics.md`: change megacov/monitor/tags.py. -->",
        "",
        HEAD,
    ]
    for section, text in (SECTIONS | LAW_SECTIONS | {"theorem": THEOREM_SECTION, "control": CONTROL_SECTION}).items():
        lines += ["", f"## {section}", "", text, "", "| tag | meaning | unit | mean over |", "|---|---|---|---|"]
        lines += [
            f"| `{tag.name}` | {tag.meaning.replace('|', chr(92) + '|')} | {tag.unit} | {tag.denominator} |"
            for tag in _TABLE
            if tag.name.startswith(f"{section}/")
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_markdown(), end="")
