"""Frozen records that pass between the floors: samples as plain values, batches as tensors.

Shape legend: n samples of a rollout batch, s padded sequence length, r padded response length,
b rows of a micro-batch, k sequences in it, t response tokens laid flat (sample after sample, position after position).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. `index` is its place in the data set; `answer` is what the verifier needs to judge it.

    `row` is its whole line of the data, kept only if the verifier asks for it. `source` is the place of its source
    among those of the run.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    answer: str
    source: int = 0
    row: dict[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Response tokens [start, end) were sampled under weight version `version`."""

    version: str
    start: int
    end: int

    @property
    def number(self) -> int:
        """The version as a number; a label that servers report may go on after a hyphen."""
        return int(self.version.partition("-")[0])


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response as the rollout server returned it.

    `log_probs` are the server's, of each token in `token_ids`, scaled by the temperature and before top-p or top-k.
    `token_ids` holds the end-of-sequence token when the model produced it.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's reward for one completion; `failure` is None, or the kind of failure for which the reward is 0."""

    reward: float
    failure: str | None = None


VERIFIER_FAILURES = {
    "raised": "The verifier raised an exception, or called sys.exit.",
    "timeout": "The verifier took longer than rewards.timeout_s.",
    "died": "The verifier's process ended.",
    "not_a_number": "The verifier returned something that is not a number.",
    "not_finite": "The verifier returned NaN, an infinity, or a number that float32 cannot hold.",
}
"""Kinds of failure, each with a sentence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one judged completion. Samples of one prompt share `group`; `failure` is the verdict's."""

    prompt: Prompt
    completion: Completion
    group: int
    reward: float
    failure: str | None = None


@dataclass(frozen=True)
class RolloutBatch:
    """The judged samples of one rollout as tensors, equal on every rank.

    tokens: [n, s] int64, prompt then response, right-padded with 0.
    prompt_lengths, response_lengths: [n] int64, in tokens.
    loss_mask: [n, r] bool, response tokens that carry loss.
    rollout_log_probs: [n, r] float32, the server's log-probs; 0 where padded.
    group_ids: [n] int64, equal for samples of one prompt.
    rewards: [n] float32, finite.
    max_response_length: tokens; the stride of token ids, so that they are free of layout.
    temperatures: [n] float64, at which each sample was drawn; None if all were drawn at the temperature of the run.
    verdicts: [n] float32, the verifier's rewards, without the penalty for length; None if `rewards` are these.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    loss_mask: Tensor
    rollout_log_probs: Tensor
    group_ids: Tensor
    rewards: Tensor
    max_response_length: int
    temperatures: Tensor | None = None
    verdicts: Tensor | None = None

    @property
    def num_positions(self) -> Tensor:
        """[n] int64, what the model reads of each sample: all but the last, which predicts nothing; one at least."""
        return (self.prompt_lengths + self.response_lengths - 1).clamp(min=1)


@dataclass(frozen=True)
class MicroBatch:
    """One rank's part of the sequences of one forward pass, and where it predicts response tokens.

    tokens: [b, s] int64, without the last of a sequence, which predicts nothing; 0 where padded; b is 1 for packed
        sequences.
    positions: [b, s] int64, of each token in its sequence.
    targets: [b, s] int64, the token after each; it may be held by another context-parallel rank, and that after the
        last place by none. 0 where padded.
    predicting: [t] int64, places in the flattened [b * s] whose target is a response token.
    sample_ids: [t] int64, index in the rollout batch.
    token_ids: [t] int64, sample index * max_response_length + response position.
    loss_mask: [t] bool.
    cu_seqlens: [k + 1] int32, where packed sequences begin and end over all context-parallel ranks, padding included;
        None for one sequence a row.
    max_seqlen: positions of the longest sequence over all context-parallel ranks, padding included.
    temperatures: [b, s] float64, of the sample at each position; None if all have the temperature of the run.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    predicting: Tensor
    sample_ids: Tensor
    token_ids: Tensor
    loss_mask: Tensor
    cu_seqlens: Tensor | None
    max_seqlen: int
    temperatures: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on another device.

        Args:
            device: where to.

        Returns:
            A copy there, or the same tensors where they are there already.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MicroBatch(
            **{
                name: value.to(device, non_blocking=True) if hasattr(value, "to") else value
                for name, value in values.items()
            }
        )


@dataclass(frozen=True)
class LossBatch:
    """Response tokens of one micro-batch as a loss reads them, laid flat.

    log_probs: [t] float32, carries the gradient.
    old_log_probs, advantages: [t] float32, detached. Old is the policy before the first optimizer step of the rollout
        batch, or for a loss that is anchored there the rollout server.
    kept_mask: [t] bool, the loss tokens that take part; the others add nothing, whatever their values.
    token_weights: [t] float32, detached; the loss is sum(token_weights * token losses), so the weights hold the
        aggregation mode and its global denominator, and micro-batches and ranks simply add up.
    sequence_index: [t] int64, index of each token's sample in the rollout batch; None where only clipped tokens are
        asked for.
    sequence_log_ratio: [t] float32, detached; sum of log_probs - old_log_probs over all kept tokens of the token's
        sequence, those on other context-parallel ranks included; None for a loss that does not ask.
    sequence_tokens: [t] float32, number of these tokens; None for a loss that does not ask.
    selected: [t] bool, tokens that the covariance method acts on; None where the loss selects nothing.
    selection_weights: [t] float32, detached, what the selection lets each token count; None where it gives none.
    entropy: [t] float32 nats, or None; carries a gradient only for an entropy bonus.
    ref_log_probs: [t] float32, detached, or None.
    old_entropy: [t] float32 nats, detached, under the policy of old_log_probs; None for a loss that does not ask.
    filtered_old_log_probs: [t] float32, detached, under the same policy without its improbable entries (min-p), -inf
        for a token that is one; None for a loss that does not ask.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    kept_mask: Tensor
    token_weights: Tensor
    sequence_index: Tensor | None = None
    sequence_log_ratio: Tensor | None = None
    sequence_tokens: Tensor | None = None
    selected: Tensor | None = None
    entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None
    old_entropy: Tensor | None = None
    selection_weights: Tensor | None = None
    filtered_old_log_probs: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss, and metrics as detached scalar sums over kept tokens.

    The caller adds metrics over micro-batches and ranks and divides by the number of kept tokens.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """A process group of a trainer and the ranks of one or more servers, for weights.

    master_address, master_port: where the trainer, rank 0, keeps the group's store.
    rank_offset: rank of the server's first rank; the trainer has rank 0.
    world_size: the trainer and all ranks of all servers. [ranks]
    """

    name: str
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    backend: Literal["nccl", "gloo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """Tensors that the trainer broadcasts in this order, by their Hugging Face names.

    dtypes: as torch writes them, without `torch.`, such as "bfloat16".
    is_flattened: all come as one broadcast of bytes, one behind another.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_flattened: bool = False

    def __post_init__(self) -> None:
        """Check that the fields tell of the same tensors."""
        assert len(self.names) == len(self.dtypes) == len(self.shapes) > 0
