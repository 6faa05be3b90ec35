"""docs/losses.md, rendered from the losses themselves: `python -m megacov.monitor.loss_page > docs/losses.md`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from megacov.advantages import ADVANTAGES
from megacov.config.losses import LOSS_SECTIONS
from megacov.config.messages import expected, show
from megacov.losses import LOSSES, Loss, add_terms

_INTRODUCTION = """\
# Losses

<!-- Rendered by `python -m megacov.monitor.loss_page > docs/losses.md`: change the files in megacov/losses/ and
megacov/config/losses/. -->

`algorithm.loss.name` chooses the policy loss; the keys beside it are its hyperparameters. `yaml_configs/algorithms/`
has a file with published values for each, which any run can extend. A name of the form `package.module:function` is
imported: [examples/custom_loss](../examples/custom_loss/) shows one, and CONTRIBUTING.md says how to add a loss here.

Symbols: `A` advantages, `d = log_prob - old_log_prob`, `rho = exp(d)`, sg: detached from the gradient. The old policy
is the one before the first optimizer step of a rollout batch, where d is exactly 0, or with
`algorithm.old_log_probs: rollout` that of the server ([rollouts.md](rollouts.md)). Each loss is given for one token;
`algorithm.aggregation` says how tokens become one number. Every metric is a mean over kept tokens, logged as
`policy/<metric>`, beside the ones that all losses have ([metrics.md](metrics.md)). "Needs a selection" means that
`algorithm.selection` must choose tokens for it; other losses take `selection: {name: none}`.
"""

_ADVANTAGES = """\
## Advantages

`algorithm.advantages.name` chooses the estimator of `A`, as in `algorithm: {advantages: {name: rloo}}`, and every loss
takes any of them. A response is compared with the other responses of its prompt, and all its tokens have the same
advantage. The groups that `rollout.filter_groups` drops are those of equal rewards, whose advantages are 0 under both.
Clip-Cov's band is in nats x advantage, and the published one is for advantages that are divided by their spread:
`check` warns about others.

`algorithm.max_entropy` makes entropy a reward of every token (maximum-entropy RL, arXiv 1704.06440), whatever the
estimator and the loss. H_t is the entropy of the old policy where it draws token t, and the mean is over the optimizer
step:

```
A_t = A + coef (-log_prob_t - H_t + F_t - mean F)
F_t = sum over k >= 1 of discount^k H_(t+k)
```

Unlike a bonus on the loss (`algorithm.entropy_coef`), which raises the entropy of the states that are reached, it also
credits a token for the entropy of those that it leads to. With discount 0 both have the same gradient on average. With
discount 1 long responses earn more; 0.99 looks about 100 tokens ahead. `entropy_coef` and `max_entropy` add up.

A new estimator is a function in `megacov/advantages/`, a line in its `registry.py` and a class of settings in the union
`Advantages` of `megacov/config/algorithm.py`.
"""


_TERMS = """\
## Added terms

Any loss may have an entropy bonus (`algorithm.entropy_coef`) and a penalty on the distance to the policy that training
began with (`algorithm.ref_kl_coef`, `ref_kl_estimator`, `ref_kl_max_gap`), with the weights of the loss.
"""


def render_page() -> str:
    """All losses as Markdown, ending in a newline."""
    losses = (line for loss in LOSSES.values() for line in _section(loss))
    return "\n".join([_INTRODUCTION, *losses, *_terms(), _ADVANTAGES, *_estimators()]).rstrip() + "\n"


def _terms() -> Iterator[str]:
    yield from (_TERMS, "```text", *_equation(add_terms).partition("\n\n")[2].splitlines(), "```", "")


def _estimators() -> Iterator[str]:
    for name, estimator in ADVANTAGES.items():
        summary, _, body = _equation(estimator).partition("\n\n")
        yield from (f"### {name}", "", *summary.splitlines(), "", "```text", *body.splitlines(), "```", "")


def _section(loss: Loss) -> Iterator[str]:
    summary, _, body = _equation(loss.token_losses).partition("\n\n")
    yield from (f"## {loss.name}", "", *summary.splitlines(), "")
    yield from ("```text", *body.splitlines(), "```", "")
    yield from (*(f"- {fact}" for fact in _facts(loss)), "")
    yield from ("| hyperparameter | meaning | values | default |", "|---|---|---|---|")
    for key, field in LOSS_SECTIONS[loss.name].model_fields.items():
        if key != "name":
            meaning = (field.description or "").rpartition(" [")[0] or field.description
            yield f"| `{key}` | {_cell(meaning)} | {_cell(expected(field))} | {show(field.default)} |"
    yield ""
    if loss.metrics:
        yield from ("| metric | meaning | unit |", "|---|---|---|")
        yield from (f"| `{name}` | {_cell(metric.meaning)} | {metric.unit} |" for name, metric in loss.metrics.items())
        yield ""


def _equation(function: Callable[..., object]) -> str:
    """The docstring of the equation, as far as its first section of parameters."""
    return (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()


def _facts(loss: Loss) -> Iterator[str]:
    own = LOSS_SECTIONS[loss.name].own_selection
    if loss.needs_selection:
        yield "Needs a selection." if own is None else f"Needs the selection `{own}`, which no other loss takes."
    if loss.needs_sequence_sums:
        yield "Reads sums over sequences: one message a micro-batch among context-parallel ranks."
    if loss.needs_filtered_old:
        yield "Reads log-probs under the filtered old policy, so `algorithm.old_log_probs` must be `recompute`."
    if loss.needs_old_entropy:
        yield "Reads each token's entropy under the old policy, so `algorithm.old_log_probs` must be `recompute`."
    if loss.is_anchored_at_rollout:
        yield "Its old log-probs are the rollout server's; `algorithm.rollout_correction` must be off."
    if loss.clipped_tokens is not None:
        yield "A clip leaves some tokens without gradient."
    yield "Value and gradient differ on purpose." if loss.has_own_gradient else "The gradient is that of the value."
    if loss.is_policy_gradient_at_old:
        others = " of tokens that are not selected" if loss.needs_selection else ""
        yield f"At d = 0 the gradient{others} is that of the plain policy gradient, -A."


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    print(render_page(), end="")
