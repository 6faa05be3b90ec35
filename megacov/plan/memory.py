"""Memory of one GPU in each pipeline stage of the trainer, and of one node while a checkpoint is written.

Sources: the state of mixed-precision Adam and its sharding follow ZeRO (Rajbhandari et al., arXiv 1910.02054, stage 1)
and Megatron-LM's `megatron/training/theoretical_memory_usage.py`; the allocations are those of
`megacov/megatron/{model,optimizer,policy,checkpoint}.py` and `megacov/ops/log_probs_entropy.py`. Bytes of a parameter:

- weights: 2 in bfloat16, 4 in float32 (`params_dtype`), on every GPU of the shard; - gradients: 4
(`grad_reduce_in_fp32`), on every GPU of the shard, since Megatron's distributed optimizer distributes the
  optimizer state and not the gradient buffer;
- optimizer: Adam's two moments in float32, and a float32 copy of bfloat16 weights, distributed over data- and
  context-parallel ranks. Float32 weights are their own copy.

Three moments that never coincide are compared: a training pass, a push of weights, and a save.
"""

from __future__ import annotations

from dataclasses import dataclass

from megacov.config.model_split import fuses_output
from megacov.plan.activations import ActivationSettings, Recompute, kept_after_layers, kept_by_layer, layers_in_flight
from megacov.plan.batch import BatchPlan
from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.parameters import count_parameters, vocab_rows

GRADIENT_BYTES = 4
_MOMENT_BYTES, _MAIN_BYTES = 8, 4

NCCL_GROUP_BYTES = 256 * 2**20
"""Assumed for one NCCL communicator: 4 MiB (NCCL_BUFFSIZE) to and from a peer on each of 32 channels."""

LOGIT_BLOCK_BYTES = 2 * 64 * 2**20
"""Two scratch buffers of `megacov.ops.row_blocks` on a GPU, through which log-probs and entropy are computed."""

CHUNK_TOKENS = 1024
"""Positions whose logits exist at a time in `megacov.ops.linear_log_probs`, whose file imports torch."""


@dataclass(frozen=True)
class TrainerSettings:
    """How the trainer runs.

    value_bytes: bytes of a weight or an activation, 2 in bfloat16 and 4 in float32.
    fused: whether layers are Transformer Engine's.
    with_reference: whether the first weights are kept as well, for a reference KL.
    bucket_bytes: size of a message of weights to the servers; 0 if weights go through the disk.
    saves: whether checkpoints are written.
    defers: whether all forwards of an optimizer step come before its first backward, and keep what that needs.
    fused_output: `model.fused_output`, whether passes without gradient hold no whole logits.
    gathers: whether rank 0 sends whole matrices to the servers; otherwise every rank sends its shards.
    """

    value_bytes: int
    recompute: Recompute
    fused: bool
    vocab_divisible_by: int
    with_reference: bool
    bucket_bytes: int
    saves: bool
    defers: bool = False
    fused_output: str = "auto"
    gathers: bool = True


@dataclass(frozen=True)
class StageMemory:
    """One GPU of a pipeline stage, in bytes.

    reference: first weights, kept beside the policy's.
    communication: NCCL's buffers, and messages between stages.
    activations: activations kept for the backward pass at the fullest moment.
    logits: logits, then their gradient in the same place, and the scratch memory of log-probs and entropy, or what the
        backward of the output layer makes of them; on the last stage.
    layer_work: memory that the backward pass of one layer allocates, when the logits are freed already.
    push: whole matrices and buckets on their way to the servers.
    save: optimizer state gathered for a checkpoint.
    swap: policy weights set aside while the reference computes, and its logits, whole or a chunk of them.
    staging: main memory for the copy from which a checkpoint is written.
    """

    stage: int
    num_layers: int
    num_parameters: int
    weights: int
    gradients: int
    optimizer: int
    reference: int
    communication: int
    activations: int
    logits: int
    layer_work: int
    push: int
    save: int
    swap: int
    staging: int

    @property
    def resident(self) -> int:
        """Memory held from the first step to the last."""
        return self.weights + self.gradients + self.optimizer + self.reference + self.communication

    @property
    def training(self) -> int:
        """Memory that a training pass adds at its fullest moment."""
        return self.activations + max(self.logits, self.layer_work)

    @property
    def peak(self) -> int:
        """Memory at the fullest moment of a step."""
        return self.resident + max(self.training, self.push, self.save, self.swap)


def plan_trainer(sizes: ModelSizes, layout: Layout, batch: BatchPlan, settings: TrainerSettings) -> list[StageMemory]:
    """Plan one GPU of every pipeline stage; all GPUs of a stage hold the same amount."""
    trainer = _Trainer(sizes, layout, batch, settings)
    return [trainer.stage_memory(stage) for stage in range(layout.pipeline)]


@dataclass(frozen=True)
class Room:
    """What a GPU can keep of an optimizer step whose backwards wait for a selection, on the tightest pipeline stage.

    stage: that one.
    position_bytes: what it keeps of each position.
    positions: how many fit beside everything else; on each context-parallel rank.
    """

    stage: int
    position_bytes: float
    positions: int


def plan_room(
    sizes: ModelSizes, layout: Layout, batch: BatchPlan, settings: TrainerSettings, *, usable_bytes: int
) -> Room:
    """Divide what `plan_trainer` leaves of a GPU by what a deferred backward keeps of a position.

    Args:
        sizes: of the model.
        layout: of the trainer.
        batch: its fullest micro-batch counts here, whose logits or layer are worked on beside all that is kept.
        settings: how the trainer runs; whether it defers is not asked.
        usable_bytes: memory of a GPU that the trainer may use.

    Returns:
        The room on the stage that has least.
    """
    trainer = _Trainer(sizes, layout, batch, settings)

    def room(stage: int) -> Room:
        found, each = trainer.stage_memory(stage), trainer.kept_by_a_position(stage)
        free = usable_bytes - found.resident - max(found.logits, found.layer_work)
        return Room(stage, each, max(0, int(free // each)))

    return min((room(stage) for stage in range(layout.pipeline)), key=lambda one: one.positions)


def optimizer_bytes(value_bytes: int) -> int:
    """Bytes of Adam's state for one parameter, whose weight has `value_bytes`."""
    return _MOMENT_BYTES + (0 if value_bytes == GRADIENT_BYTES else _MAIN_BYTES)


@dataclass(frozen=True)
class _Trainer:
    """The trainer whose memory is planned."""

    sizes: ModelSizes
    layout: Layout
    batch: BatchPlan
    settings: TrainerSettings

    def stage_memory(self, stage: int) -> StageMemory:
        sizes, layout, settings = self.sizes, self.layout, self.settings
        count = count_parameters(sizes, layout, stage=stage, vocab_divisible_by=settings.vocab_divisible_by)
        weights = count.total * settings.value_bytes
        per_parameter = optimizer_bytes(settings.value_bytes)
        optimizer = per_parameter * count.dense / layout.optimizer_shards
        optimizer += per_parameter * count.expert / layout.expert_optimizer_shards
        is_last = stage == layout.pipeline - 1
        matrix = count.largest * settings.value_bytes
        return StageMemory(
            stage=stage,
            num_layers=sizes.num_layers // layout.pipeline,
            num_parameters=count.total,
            weights=weights,
            gradients=count.total * GRADIENT_BYTES,
            optimizer=int(optimizer),
            reference=weights if settings.with_reference else 0,
            communication=self._communication(),
            activations=int(self._activations(stage)),
            logits=self._logits() if is_last else 0,
            layer_work=int(self._layer_work()) + matrix,
            # Gathered shards, and the matrix made of them. Only rank 0, in the first stage, sends buckets.
            push=(2 * layout.tensor * matrix if settings.gathers else 0)
            + (2 * settings.bucket_bytes if stage == 0 or not settings.gathers else 0),
            # Owners gather whole parameters, and hold all that they own until it is copied to main memory.
            save=int(optimizer) + 2 * GRADIENT_BYTES * count.largest if settings.saves else 0,
            swap=weights + (self._logits_without_gradient() if is_last else 0) if settings.with_reference else 0,
            staging=weights + int(optimizer) if settings.saves else 0,
        )

    def _activations(self, stage: int) -> float:
        sizes, layout, batch = self.sizes, self.layout, self.batch
        if self.settings.defers:
            return self.kept_by_a_position(stage) * batch.micro_batches * batch.positions_per_rank
        layers = layers_in_flight(layout, num_layers=sizes.num_layers, stage=stage, micro_batches=batch.micro_batches)
        kept = layers * kept_by_layer(sizes, layout, self._layer_settings())
        if stage == layout.pipeline - 1:
            kept += kept_after_layers(sizes, layout, self._layer_settings())
        return kept * batch.positions_per_rank

    def kept_by_a_position(self, stage: int) -> float:
        """Bytes that a stage keeps of every position of an optimizer step whose backwards wait."""
        sizes, layout, settings = self.sizes, self.layout, self.settings
        kept = sizes.num_layers / layout.pipeline * kept_by_layer(sizes, layout, self._layer_settings())
        if stage < layout.pipeline - 1:
            # What the stage has sent is kept, since its backward begins there.
            return kept + settings.value_bytes * sizes.hidden_size * layout.virtual_pipeline / layout.sequence_share
        kept += kept_after_layers(sizes, layout, self._layer_settings())
        if settings.recompute != "full":
            kept += settings.value_bytes * self._vocab_rows()
        return kept

    def _layer_settings(self, recompute: Recompute | None = None) -> ActivationSettings:
        settings = self.settings
        return ActivationSettings(settings.value_bytes, recompute or settings.recompute, settings.fused)

    def _layer_work(self) -> float:
        """Gradients of the widest activations, the input that sequence parallelism gathers, and a recomputed layer."""
        sizes, layout = self.sizes, self.layout
        h, f = sizes.hidden_size, sizes.ffn_hidden_size / layout.tensor
        if sizes.num_experts:
            f = sizes.experts_per_token * sizes.expert_hidden_size / layout.sequence_share
        work = self.settings.value_bytes * (3 * f + h + (h if layout.sequence_share > 1 else 0))
        if self.settings.recompute == "full":
            work += kept_by_layer(sizes, layout, self._layer_settings("none"))
        return work * self.batch.positions_per_rank

    def _logits(self) -> int:
        """Memory of the logits, over which their gradient is written; entropy needs none of its own.

        Afterwards the gradients of the output layer's weights and of the hidden states exist beside that gradient.
        """
        positions, rows = self.batch.positions_per_rank, self._vocab_rows()
        logits = positions * rows * self.settings.value_bytes
        after = (rows + 2 * positions) * self.sizes.hidden_size * self.settings.value_bytes
        return logits + max(self._logit_scratch(), after)

    def _logits_without_gradient(self) -> int:
        """Memory of whole logits; or of hidden states, whole and without prompts, and a chunk of logits."""
        settings, layout, positions = self.settings, self.layout, self.batch.positions_per_rank
        rows, hidden = self._vocab_rows(), positions * self.sizes.hidden_size * settings.value_bytes
        if not fuses_output(settings.fused_output, tensor=layout.tensor):
            return positions * rows * settings.value_bytes + self._logit_scratch()
        chunk = min(positions, CHUNK_TOKENS) * rows * settings.value_bytes
        return 2 * hidden + chunk + self._logit_scratch()

    def _logit_scratch(self) -> int:
        return LOGIT_BLOCK_BYTES + self.batch.positions_per_rank * 4 * (4 * self.layout.tensor + 8)

    def _vocab_rows(self) -> int:
        return vocab_rows(self.sizes, tensor=self.layout.tensor, vocab_divisible_by=self.settings.vocab_divisible_by)

    def _communication(self) -> int:
        layout = self.layout
        groups = (layout.world_size, layout.tensor, layout.pipeline, layout.context, layout.data, layout.expert)
        buffers = sum(NCCL_GROUP_BYTES for size in groups if size > 1)
        if layout.pipeline > 1:
            # In each direction, one message is received while another is processed.
            message = self.batch.positions_per_rank * self.sizes.hidden_size * self.settings.value_bytes
            buffers += 4 * message // layout.sequence_share
        return buffers
