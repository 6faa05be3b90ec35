"""Reference results for the distributed code: the formulas in float64, unsharded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_probs_and_entropy(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = 1.0, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(z)_target and -sum p log p with z = logits / temperature over the first vocab_size entries."""
    if isinstance(temperature, Tensor):
        temperature = temperature.double().unsqueeze(-1)
    log_p = torch.log_softmax(logits.double()[..., :vocab_size] / temperature, -1)
    return log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1), torch.special.entr(log_p.exp()).sum(-1)


def min_p_log_probs(
    logits: Tensor, targets: Tensor, *, min_p: float, temperature: float | Tensor = 1.0, vocab_size: int | None = None
) -> Tensor:
    """log q_target, where q is p without the entries below min_p times the largest, renormalized."""
    if isinstance(temperature, Tensor):
        temperature = temperature.double().unsqueeze(-1)
    p = torch.softmax(logits.double()[..., :vocab_size] / temperature, -1)
    kept = p.where(p >= min_p * p.amax(-1, keepdim=True), 0.0)
    return (kept / kept.sum(-1, keepdim=True)).gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()


def square_sums(
    logits: Tensor, *, temperature: float | Tensor = 1.0, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """sum p^2 and sum p^2 log p of the same p; an entry of probability 0 adds nothing."""
    if isinstance(temperature, Tensor):
        temperature = temperature.double().unsqueeze(-1)
    log_p = torch.log_softmax(logits.double()[..., :vocab_size] / temperature, -1)
    p = log_p.exp()
    return p.square().sum(-1), (p.square() * log_p.where(p > 0, 0.0)).sum(-1)


def covariance(log_probs: Tensor, advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """(lp - mean lp) (A - mean A) with means over the mask; 0 outside it."""
    log_probs, advantages = log_probs.double(), advantages.double()
    centred = (log_probs - log_probs[loss_mask].mean()) * (advantages - advantages[loss_mask].mean())
    return torch.where(loss_mask, centred, torch.zeros_like(centred))


def top_k_ids(tokens: Sequence[tuple[float, bool, int]], k: int) -> set[int]:
    """Ids of the k best of (score, is masked, id): larger scores first, then smaller ids; NaN last."""

    def rank(token: tuple[float, bool, int]) -> tuple[bool, float, int]:
        score, _, token_id = token
        is_nan = isinstance(score, float) and math.isnan(score)
        return is_nan, 0 if is_nan else -score, token_id

    return {token_id for _, _, token_id in sorted((token for token in tokens if token[1]), key=rank)[:k]}


def causal_attention(query: Tensor, key: Tensor, value: Tensor, sequences: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k) v over the same sequence so far: [t, n, d] from q [t, n, d], k and v [t, g, d], ids [t]."""
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (x.double() for x in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)))
    is_seen = (sequences[:, None] == sequences) & torch.ones(len(sequences), len(sequences)).tril().bool()
    scores = torch.einsum("ind,jnd->nij", q, k) * scale
    return torch.einsum("nij,jnd->ind", scores.masked_fill(~is_seen, -math.inf).softmax(-1), v)
