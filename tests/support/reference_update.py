"""Optimizer steps as written in the paper: float64, one process, transformers' model and torch's Adam."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from megacov.types import RolloutBatch
from tests.support.policies import ADAM, TEMPERATURE
from tests.support.reference import covariance, log_probs_and_entropy


def _tokens(model: nn.Module, batch: RolloutBatch, samples: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropy, sample and position of the loss tokens of some samples; one forward pass a sample."""
    found = []
    for i in samples:
        prompt, response = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
        ids = batch.tokens[i, : prompt + response]
        logits = model(ids[None]).logits[0, prompt - 1 : prompt + response - 1]
        temperature = TEMPERATURE if batch.temperatures is None else float(batch.temperatures[i])
        log_probs, entropy = log_probs_and_entropy(logits, ids[prompt:], temperature=temperature)
        keep = batch.loss_mask[i, :response]
        positions = torch.arange(response)[keep]
        found.append((log_probs[keep], entropy[keep], torch.full_like(positions, i), positions))
    log_probs, entropy, sample, position = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_probs, entropy, sample, position


def _advantages(batch: RolloutBatch) -> Tensor:
    values = batch.rewards.double()
    result = torch.zeros_like(values)
    for group in batch.group_ids.unique():
        of_group = batch.group_ids == group
        own = values[of_group]
        spread = own.std(correction=1) if len(own) > 1 else torch.zeros(())
        result[of_group] = (own - own.mean()) / (spread + 1e-6)
    return result


def train(
    folder: Path,
    batch: RolloutBatch,
    *,
    num_updates: int,
    ratio: float | None,
    kl_coef: float = 1.0,
    entropy_coef: float = 0.0,
    ref_kl_coef: float = 0.0,
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after the updates of one rollout batch, and the gradient norm of each.

    `ratio` makes it KL-Cov in `mini_batch` scope with current log-probs and |d|; None makes it GRPO with a clip of 0.2.
    Aggregation is the token mean.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    adam = torch.optim.Adam(model.parameters(), lr=ADAM.lr, betas=(ADAM.beta1, ADAM.beta2), eps=ADAM.eps)
    size = len(batch.rewards) // num_updates
    updates = [range(size * i, size * (i + 1)) for i in range(num_updates)]
    with torch.no_grad():
        old = [_tokens(model, batch, samples)[0] for samples in updates]
    norms = []
    for i, samples in enumerate(updates):
        log_probs, entropy, sample, _ = _tokens(model, batch, samples)
        advantages = _advantages(batch)[sample]
        d = log_probs - old[i]
        if ratio is None:
            losses = torch.maximum(-advantages * d.exp(), -advantages * d.exp().clamp(0.8, 1.2))
        else:
            cov = covariance(log_probs.detach(), advantages, torch.ones_like(advantages, dtype=torch.bool))
            # Tokens are in the order of their ids, to which ties go; rounding makes ties of what differs by noise.
            rounded = cov.round(decimals=12)
            order = rounded.sort(descending=True, stable=True).indices
            # Where all advantages are alike, covariances are equal and name no token.
            quota = 0 if rounded.min() == rounded.max() else max(1, int(ratio * len(cov)))
            chosen = torch.zeros_like(cov).index_fill(0, order[:quota], 1.0)
            # The first update moves from d = 0, where |d| has no slope.
            losses = -advantages * d.exp() + (kl_coef * chosen * d.abs() if i > 0 else 0.0)
        losses = losses - entropy_coef * entropy
        if ref_kl_coef != 0:
            # Before the first update of a run the reference is the old policy.
            losses = losses + ref_kl_coef * (torch.expm1(-d) + d)
        adam.zero_grad()
        losses.mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), ADAM.clip_grad)))
        adam.step()
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    return weights, norms
