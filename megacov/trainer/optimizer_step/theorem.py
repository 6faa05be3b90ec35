"""The change of entropy that theory predicts for an optimizer step, beside the one that is observed.

One micro-batch of each data-parallel rank is measured around the first optimizer step of a rollout batch. Under virtual
pipeline stages it is as many as the schedule asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from megacov.megatron.entropy_slope import EntropySlope
from megacov.megatron.logits_reader import TokenStatistics
from megacov.megatron.policy import Policy
from megacov.monitor.metrics import masked_means
from megacov.monitor.theorem import natural_gradient_change, plain_gradient_change
from megacov.ops import covariance
from megacov.parallel.collectives import all_reduce_sum
from megacov.trainer.agreement import from_last_stage
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.token_inputs import join


class TheoremCheck:
    """Predictions and observation for one optimizer step. Every method is a collective of all ranks."""

    def __init__(
        self,
        policy: Policy,
        mini_batch: MiniBatch,
        statistics: Sequence[TokenStatistics | None],
        *,
        num_micro_batches: int,
        with_gradient: bool,
    ) -> None:
        """Hold what the pass that found the old log-probs says of the measured micro-batches.

        Args:
            policy: the policy that is about to be updated.
            mini_batch: of the optimizer step, weighed.
            statistics: of its first micro-batches, with the sums of squared probabilities; empty off the last stage.
            num_micro_batches: how many of them are measured.
            with_gradient: whether to differentiate the entropy along the step too.
        """
        self._policy, self._with_gradient = policy, with_gradient
        self._micro_batches = mini_batch.micro_batches[:num_micro_batches]
        self._inputs = mini_batch.inputs[:num_micro_batches]
        self._statistics = [found for found in statistics[:num_micro_batches] if found is not None]
        self._slope: EntropySlope | None = None
        self._means: dict[str, float] = {}

    def before_update(self) -> None:
        """Differentiate the entropy at the old weights, if that was asked for.

        Collectives: with the gradient, those of `Policy.entropy_slope`.
        """
        if self._with_gradient:
            self._slope = self._policy.entropy_slope(self._micro_batches, [part.kept_mask for part in self._inputs])

    def after_update(self) -> None:
        """Observe the entropies under the new weights, with one forward pass, and compare.

        Collectives: those of `Policy.log_probs`; with the gradient, world: SUM [] float64; on the last stage dp_cp: SUM
        [5], SUM [4, 3] and SUM [] float64.
        """
        found = self._policy.log_probs(self._micro_batches)
        along_step = None if self._slope is None else self._slope.along_step(device=self._policy.device)
        self._slope = None
        if self._policy.groups.is_last_stage:
            self._means = self._compare([statistics.entropy for statistics in found], along_step)

    def _compare(self, new_entropies: Sequence[Tensor], along_step: float | None) -> dict[str, float]:
        """Means over the kept tokens of all ranks, by tag."""
        group = self._policy.groups.dp_cp
        kept, advantages, old = (join(self._inputs, name) for name in ("kept_mask", "advantages", "trainer_log_probs"))
        entropy = join(self._inputs, "entropy")
        square_sum = torch.cat([_given(part.square_sum) for part in self._statistics])
        square_log_sum = torch.cat([_given(part.square_log_sum) for part in self._statistics])
        changes = {
            "theorem/observed": torch.cat(list(new_entropies)).double() - entropy.double(),
            "theorem/covariance": -covariance(old, advantages, kept, group=group),
            "theorem/centred": natural_gradient_change(old, entropy, advantages),
            "theorem/gradient": plain_gradient_change(old, entropy, square_sum, square_log_sum, advantages),
        }
        means = masked_means({tag: (values, kept) for tag, values in changes.items()}, group=group)
        found = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        num_tokens = int(all_reduce_sum(kept.sum(), group=group))
        if along_step is not None and num_tokens > 0:
            found["theorem/directional"] = along_step / num_tokens
        return found

    def metrics(self) -> dict[str, float]:
        """What was measured.

        Collectives: pp: those of `from_last_stage`.

        Returns:
            `theorem/*`, equal on all ranks; empty if the optimizer step was left out. Values that are not finite are
            absent.
        """
        return from_last_stage(
            {tag: value for tag, value in self._means.items() if isfinite(value)}, self._policy.groups
        )


def _given(values: Tensor | None) -> Tensor:
    assert values is not None, "the measured micro-batches are read with the sums of squares"
    return values
