"""Tags of the predicted and the observed change of entropy."""

from __future__ import annotations

from megacov.monitor.tag import Tag
from megacov.monitor.theorem_agreement import PREDICTIONS, WINDOW

_PREDICTED = {
    "covariance": "Minus the mean covariance of log-prob and advantage over the measured tokens (arXiv 2505.22617).",
    "centred": "The same centred in each state: mean of -A (log_prob + H), since -H is the expected log-prob there.",
    "gradient": "Mean of -A [p (log_prob + H) - (sum p^2 log p + H sum p^2)], p the token's probability and sums over "
    "the vocabulary: a plain gradient step on the logits.",
    "directional": "Derivative of the mean entropy along the optimizer step that was taken; only with "
    "`monitor.theorem_gradient`.",
}

THEOREM_TAGS = (
    Tag("theorem/observed", "Entropy after the optimizer step minus entropy before it.", "nats", "tokens"),
    *(Tag(f"theorem/{name}", _PREDICTED[name], "nats", "tokens") for name in PREDICTIONS),
    *(
        Tag(f"theorem/{name}_{measure}", f"`theorem/{name}` against `theorem/observed`: {meaning}.", unit, "none")
        for name in PREDICTIONS
        for measure, meaning, unit in (
            ("correlation", "correlation", "-"),
            ("slope", "slope of the line through them, observed by predicted", "ratio"),
            ("same_sign", "measurements in which the signs agree", "share"),
        )
    ),
    Tag(
        "perf/theorem_s", "Passes that predict and observe the change of entropy, where a step makes them.", "s", "none"
    ),
)

THEOREM_SECTION = f"""\
The change of entropy by the first optimizer step of a rollout batch: predicted to first order, and observed on the same
tokens after it. Every `monitor.theorem_every` steps, on the kept tokens of one micro-batch of each data-parallel rank.
Correlation, slope and agreement of signs are over the last {WINDOW} measurements, five or more.
[theorem.md](theorem.md) shows how far each prediction can be trusted, and measures it.

`covariance`, `centred` and `gradient` are for a step of size 1 on the logits, so compare them over a window by
correlation and slope; the slope takes in the learning rate and what the optimizer makes of a gradient. `directional` is
in the same nats as `observed`, and its slope is 1 for a small step.

Each promises less than it seems to. `centred` is exact, in sign and size, for a natural-gradient step of a policy with
logits of its own in every state, and `gradient` for a plain one, both in expectation over sampled tokens. `covariance`
is `centred` in a single state; over several it also holds how mean advantage and mean log-prob vary between them, and
can have the other sign. Its sign agrees with that of a plain gradient step in only 78
to 88 % of random tabular policies over 16 tokens, from batches of 16 to 1024 samples. A network shares weights among
states, Adam rescales its gradient, and a batch samples few tokens of each state; only `directional` assumes none of
that away, but a straight line."""
