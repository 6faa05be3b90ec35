"""`megacov train`, with each optimizer step measured: the gradient of the loss on the selected tokens.

    python -m benchmarks.gsm8k_probe RECORDS train CONFIG [SETTING=VALUE...]

The process is a rank, so it needs the environment that torchrun sets. It trains as `megacov train` does: passes of
their own compute these gradients before each optimizer step, and drop them. RECORDS gets one JSON object a line: one
for each optimizer step, and one with the metrics for each step. The run must have one rank and the loss KL-Cov.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from megacov.cli.main import main
from megacov.megatron.forward_step import BetweenPasses, TokenLoss, forward_backward
from megacov.megatron.policy import Policy, UpdateResult
from megacov.trainer import loop
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.update import MiniBatchLoss
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepReport, StepSettings, train_step
from megacov.types import LossOutput, MicroBatch


@dataclass
class _Gradient:
    """Of the loss restricted to the selected tokens: to the weights, and to the log-probs of these tokens."""

    weights: list[Tensor]
    log_probs: list[float]
    penalty: float


@dataclass(kw_only=True)
class ProbedPolicy(Policy):
    """A policy that measures its updates. It shares everything with the policy it is made of."""

    algorithm: Algorithm
    record: Callable[[dict[str, Any]], None]

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        token_loss: TokenLoss,
        *,
        entropy_grad: bool,
        between_passes: BetweenPasses | None = None,
    ) -> UpdateResult:
        """As `Policy.update`; records the gradients on the selected tokens, and how far the weights have moved."""
        assert isinstance(token_loss, MiniBatchLoss) and token_loss.selection is not None
        masks, started = token_loss.selection.masks, time.perf_counter()
        found = self._gradient(micro_batches, token_loss, masks)
        with _without_penalty(self.algorithm):
            bare = self._gradient(micro_batches, token_loss, masks)
        before = [parameter.detach().clone() for parameter in self._parameters()]
        probe_s = time.perf_counter() - started
        result = super().update(micro_batches, token_loss, entropy_grad=entropy_grad, between_passes=between_passes)
        moved = [parameter.detach() - old for parameter, old in zip(self._parameters(), before, strict=True)]
        self.record(
            {
                "tokens": sum(int(micro_batch.loss_mask.sum()) for micro_batch in micro_batches),
                "selected": len(found.log_probs),
                "penalty": found.penalty,
                "token_gradients": found.log_probs,
                "token_gradients_without_penalty": bare.log_probs,
                "gradient_norm_selected": _norm(found.weights),
                "gradient_norm_selected_without_penalty": _norm(bare.weights),
                "gradient_norm_penalty": _norm([a - b for a, b in zip(found.weights, bare.weights, strict=True)]),
                "gradient_norm": result.grad_norm,
                "moved": _norm(moved),
                "probe_s": probe_s,
            }
        )
        return result

    def _gradient(
        self, micro_batches: Sequence[MicroBatch], token_loss: MiniBatchLoss, masks: Sequence[Tensor]
    ) -> _Gradient:
        """Passes over the micro-batches with selected tokens, in which other tokens carry no gradient."""
        chosen = [index for index, mask in enumerate(masks) if bool(mask.any())]
        gradients, penalties = list[float](), list[float]()

        def on_selected(place: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
            index = chosen[place]
            leaf = log_probs.detach().requires_grad_()
            output = token_loss(index, leaf, entropy)
            gradients.extend(torch.autograd.grad(output.loss, leaf)[0][masks[index]].tolist())
            penalties.append(float(output.metrics["kl_penalty"]))
            return token_loss(index, torch.where(masks[index], log_probs, log_probs.detach()), entropy)

        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        forward_backward(
            self.chunks, [micro_batches[index] for index in chosen], self.reader, on_selected, entropy_grad=False
        )
        weights = [parameter.main_grad.detach().clone() for parameter in self._parameters()]
        return _Gradient(weights, gradients, math.fsum(penalties))

    def _parameters(self) -> Iterator[Any]:
        return (parameter for chunk in self.chunks for parameter in chunk.parameters())


@contextmanager
def _without_penalty(algorithm: Algorithm) -> Iterator[None]:
    """Set kl_coef to 0 for the duration of the context."""
    given = algorithm.loss_hyperparameters["kl_coef"]
    algorithm.loss_hyperparameters["kl_coef"] = 0.0
    try:
        yield
    finally:
        algorithm.loss_hyperparameters["kl_coef"] = given


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors))


def _append(records: Path, record: dict[str, Any]) -> None:
    with records.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _probed_step(
    policy: Policy,
    rollout: RolloutExchange,
    algorithm: Algorithm,
    settings: StepSettings,
    state: TrainState,
    *,
    records: Path,
) -> StepReport:
    """A step of the trainer on a policy that measures its updates."""
    parts = {field.name: getattr(policy, field.name) for field in fields(Policy)}
    probed = ProbedPolicy(**parts, algorithm=algorithm, record=partial(_append, records))
    report = train_step(probed, rollout, algorithm, settings, state)
    _append(records, {"metrics": report.metrics})
    return report


if __name__ == "__main__":
    step = partial(_probed_step, records=Path(sys.argv.pop(1)))
    with mock.patch.object(loop, "train_step", step):
        main()
