"""Algorithms of the layout suite: those that decide something among all ranks, and every registered loss."""

from __future__ import annotations

from dataclasses import replace

from megacov.losses import LOSSES
from megacov.plan.control import AdaptiveLaw, EntropicLaw, Law, RepoRLaw, Target
from megacov.selection import get_selector
from megacov.trainer.algorithm import Algorithm, EntropyMask, RolloutCorrection, SoftAdvantages
from megacov.trainer.control import Control
from tests.support.losses import layout_hyperparameters_of, layout_selection_of
from tests.support.policies import ADAM, CLIP_COV, GRPO, KL_COV, KL_COV_WITH_TERMS

# All ranks decide together which tokens count.
GLOBAL_ALGORITHMS = {
    "kl_cov": KL_COV_WITH_TERMS,
    "clip_cov": replace(CLIP_COV, aggregation="sequence_mean_token_mean"),
    # The bounds let some of the sequences in, and none is near them.
    "high_entropy": replace(
        GRPO,
        entropy_mask=EntropyMask("high", 0.2),
        rollout_correction=RolloutCorrection("sequence_mean", "mask", 0.035, 2.0),
        denominator="kept",
    ),
}


def _algorithm_of(name: str) -> Algorithm:
    base, selection = KL_COV if LOSSES[name].needs_selection else GRPO, layout_selection_of(name)
    if selection is not None:
        base = replace(base, select=get_selector(name), selection_hyperparameters=selection)
    aggregation = "sequence_mean_token_mean" if LOSSES[name].needs_sequence_sums else "token_mean"
    return replace(
        base, loss=LOSSES[name], loss_hyperparameters=layout_hyperparameters_of(name), aggregation=aggregation
    )


# Every registered loss that is not above.
LOSS_ALGORITHMS = {name: _algorithm_of(name) for name in LOSSES if name not in GLOBAL_ALGORITHMS}
# Ways to the log-probs that a later update selects by, besides another pass; and advantages of single tokens.
METHOD_ALGORITHMS = {
    "kl_cov deferred": replace(GLOBAL_ALGORITHMS["kl_cov"], defers=True),
    "kl_cov correction": replace(GLOBAL_ALGORITHMS["kl_cov"], corrects=True),
    "clip_cov correction": replace(GLOBAL_ALGORITHMS["clip_cov"], corrects=True),
    "steer deferred": replace(LOSS_ALGORITHMS["steer"], defers=True),
    "max_entropy": replace(GLOBAL_ALGORITHMS["kl_cov"], soft=SoftAdvantages(0.3, 0.9)),
    "lp_reg deferred": replace(LOSS_ALGORITHMS["lp_reg"], defers=True),
    "steer correction": replace(LOSS_ALGORITHMS["steer"], corrects=True),
}


def _controlled(base: Algorithm, acts_on: str, law: Law, target: float) -> Algorithm:
    """The target is so far from the entropy of the batch, 1.5 to 2 nats, that only the laws that are continuous in it
    could tell its rounding."""
    return replace(base, control=Control(f"law of {acts_on}", acts_on, law, Target([(0, target)])))


# A second step on the batch, by the value that a controller has made of the entropy of the first.
CONTROLLED_ALGORITHMS = {
    "adaptive_entropy": _controlled(GRPO, "entropy_coef", AdaptiveLaw(0.02, 0.0, 0.1, 0.03), 3.0),
    "entropic controlled": _controlled(LOSS_ALGORITHMS["entropic"], "alpha", EntropicLaw(0.0, 0.3, 0.1), 0.5),
    "repo_r controlled": _controlled(LOSS_ALGORITHMS["repo_r"], "zeta", RepoRLaw(0.2, 1e-4, 1.0), 3.0),
}
# The gradient of |log ratio| jumps at 0, where the rounding of bfloat16 may change the sign.
SMOOTH_ALGORITHMS = {"kl_cov_k2": replace(KL_COV_WITH_TERMS, loss_hyperparameters={"kl_coef": 1.0, "estimator": "k2"})}
ALGORITHMS = GLOBAL_ALGORITHMS | METHOD_ALGORITHMS | LOSS_ALGORITHMS | CONTROLLED_ALGORITHMS | SMOOTH_ALGORITHMS
# Far enough that ratios leave the ranges of LAYOUT_HYPERPARAMETERS within three updates.
FAR = replace(ADAM, lr=3e-4)


def reference_of(name: str) -> str:
    """The algorithm that one rank runs in its place: with another pass, whatever the method."""
    return name.split()[0] if name in METHOD_ALGORITHMS else name
