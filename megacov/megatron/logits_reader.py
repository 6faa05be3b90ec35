"""From logits, or the hidden states before them, to the log-probs of the response tokens.

Shape legend: b rows and s positions of a micro-batch on this context-parallel rank, t the response tokens it predicts,
h hidden size, v/tp local vocabulary shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megacov.ops import (
    VocabSums,
    linear_min_p_log_probs,
    linear_sums,
    vocab_parallel_log_probs_and_entropy,
    vocab_parallel_min_p_log_probs,
    vocab_parallel_sums,
)
from megacov.types import MicroBatch


@dataclass(frozen=True)
class TokenStatistics:
    """Log-probs and entropy of the response tokens of one micro-batch, detached.

    log_probs: [t] float32 at the temperature of each token's sample.
    entropy: [t] float32 nats at the same temperature.
    entropy_t1: [t] float32 nats at temperature 1; None unless requested.
    square_sum, square_log_sum: [t] float32, sum p^2 and sum p^2 log p over the vocabulary at the temperature of each
        token's sample; None unless requested. [share, nats]
    filtered_log_probs: [t] float32 at the same temperature, without improbable entries, -inf for a token that is one;
        None unless requested. [nats]
    """

    log_probs: Tensor
    entropy: Tensor
    entropy_t1: Tensor | None
    square_sum: Tensor | None = None
    square_log_sum: Tensor | None = None
    filtered_log_probs: Tensor | None = None


@dataclass(frozen=True)
class LogitsReader:
    """How logits become log-probs; the same for the forward-only and the training pass.

    tp_group: ranks that hold the other vocabulary shards.
    vocab_size: size of the real vocabulary; ids from there on are padding.
    temperature: rollout temperature, of micro-batches without temperatures of their own.
    """

    tp_group: Any
    vocab_size: int
    temperature: float

    def read(
        self, logits: Tensor, micro_batch: MicroBatch, *, entropy_grad: bool, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of the response tokens.

        Collectives: those of `vocab_parallel_log_probs_and_entropy`.
        Gradient: to the logits, as there.

        Args:
            logits: [b, s, v/tp] float; the backward overwrites them with their gradient.
            micro_batch: source of the targets and of the positions that predict response tokens.
            entropy_grad: whether entropy carries a gradient.
            temperature: divisor of the logits; None for that at which each sample was drawn.

        Returns:
            log_probs [t] and entropy [t], float32.
        """
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            logits,
            micro_batch.targets,
            tp_group=self.tp_group,
            temperature=self._divisor(micro_batch) if temperature is None else temperature,
            entropy_grad=entropy_grad,
            vocab_size=self.vocab_size,
            overwrites_logits=True,
        )
        return log_probs.flatten()[micro_batch.predicting], entropy.flatten()[micro_batch.predicting]

    def read_sums(self, logits: Tensor, micro_batch: MicroBatch) -> VocabSums:
        """Log-prob and entropy of the response tokens, and the sums of squared probabilities; no gradient.

        Collectives: those of `vocab_parallel_sums`.

        Args:
            logits: [b, s, v/tp] float.
            micro_batch: as in `read`.

        Returns:
            [t] float32 each, at the temperature of each token's sample.
        """
        found = vocab_parallel_sums(
            logits,
            micro_batch.targets,
            tp_group=self.tp_group,
            temperature=self._divisor(micro_batch),
            vocab_size=self.vocab_size,
        )
        return VocabSums(*(values.flatten()[micro_batch.predicting] for values in found))

    def read_filtered(self, logits: Tensor, micro_batch: MicroBatch, *, min_p: float) -> Tensor:
        """Log-prob of the response tokens without improbable entries; no gradient.

        Collectives: those of `vocab_parallel_min_p_log_probs`.

        Args:
            logits: [b, s, v/tp] float.
            micro_batch: as in `read`.
            min_p: as in `vocab_parallel_min_p_log_probs`.

        Returns:
            [t] float32, at the temperature of each token's sample.
        """
        found = vocab_parallel_min_p_log_probs(
            logits,
            micro_batch.targets,
            min_p=min_p,
            tp_group=self.tp_group,
            temperature=self._divisor(micro_batch),
            vocab_size=self.vocab_size,
        )
        return found.flatten()[micro_batch.predicting]

    def read_hidden(
        self,
        hidden: Tensor,
        weight: Tensor,
        micro_batch: MicroBatch,
        *,
        with_entropy_t1: bool,
        with_sums: bool,
        min_p: float | None = None,
    ) -> TokenStatistics:
        """What a forward-only pass wants to know of the response tokens, without logits in memory; no gradient.

        Positions that predict no response token, such as those of the prompts, never meet the output layer.

        Collectives: those of `linear_sums`; with min_p, those of `linear_min_p_log_probs`.

        Args:
            hidden: [s, b, h] behind the last norm, equal on all tp ranks.
            weight: [v/tp, h] of the output layer.
            micro_batch: as in `read`.
            with_entropy_t1: whether to compute the entropy at temperature 1 too.
            with_sums: whether to compute the sums of squared probabilities.
            min_p: filter of the filtered log-probs; None for none of these. They cost another product with the weight.

        Returns:
            [t] float32 each.
        """
        places, divisor = micro_batch.predicting, self._divisor(micro_batch)
        rows = hidden.transpose(0, 1).reshape(-1, hidden.shape[-1])[places]
        targets = micro_batch.targets.flatten()[places]
        temperature = divisor.flatten()[places] if isinstance(divisor, Tensor) else divisor
        found = linear_sums(
            rows,
            weight,
            targets,
            tp_group=self.tp_group,
            temperature=temperature,
            vocab_size=self.vocab_size,
            with_entropy_t1=with_entropy_t1,
            with_squares=with_sums,
        )
        filtered = None
        if min_p is not None:
            filtered = linear_min_p_log_probs(
                rows,
                weight,
                targets,
                min_p=min_p,
                tp_group=self.tp_group,
                temperature=temperature,
                vocab_size=self.vocab_size,
            )
        return TokenStatistics(*found, filtered)

    def _divisor(self, micro_batch: MicroBatch) -> float | Tensor:
        """The temperature at which each sample was drawn."""
        return self.temperature if micro_batch.temperatures is None else micro_batch.temperatures
