"""The whole configuration of a run. Defaults follow the paper's 32B runs (arXiv 2505.22617) where it gives any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil, gcd
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictFloat, StrictInt, field_validator, model_validator

from megacov.config.algorithm import AlgorithmSection
from megacov.config.checkpoint import CheckpointSection
from megacov.config.cluster import ClusterSection
from megacov.config.data import DataSection, DataSource
from megacov.config.evaluation import EvaluationSection
from megacov.config.monitor import MonitorSection
from megacov.config.rewards import RewardsSection
from megacov.config.rollout import RolloutSection
from megacov.config.section import Section
from megacov.config.slurm import SlurmSection
from megacov.config.weight_sync import WeightSyncSection


class RunSection(Section):
    """Name, length and folder of the run."""

    name: str
    """Name of the run: letters, digits, dots, dashes and underscores."""
    directory: Path = Field(default_factory=lambda values: Path("runs", values["name"]))
    """Folder to which the run writes everything; by default runs/NAME."""
    steps: StrictInt = Field(ge=1)
    """Rollout batches to train on. [steps]"""
    seed: StrictInt = Field(0, ge=0, lt=2**31)
    """Determines data order, sampling and the random part of Clip-Cov. [seed]"""
    deterministic: bool = False
    """The same seed and layout give bit-identical runs; slower on GPUs."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("start it with a letter or digit, then use letters, digits, dots, dashes and underscores.")
        return name


class ModelSection(Section):
    """The policy."""

    path: Path
    """Folder of the model in Hugging Face format, with its tokenizer; or its id on the Hub, as in org/name."""
    revision: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Branch, tag or commit of a model on the Hub; null for the main branch. A run records the commit."""
    config_file: Path | None = None
    """The model's config.json, for `megacov check` if model.path does not exist yet; training does not read it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of weights and activations; the optimizer keeps float32 copies either way."""
    vocab_divisible_by: StrictInt = Field(128, ge=1)
    """The vocabulary is padded to a multiple of this times parallel.tensor. [tokens]"""
    transformer_engine: Literal["auto", "on", "off"] = "auto"
    """NVIDIA Transformer Engine for attention, linear layers and norms; auto uses it if it is installed."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: of no layer, of attention alone, of whole layers."""
    fused_output: Literal["auto", "on", "off"] = "auto"
    """Passes without gradient go from hidden states to log-probs without whole logits; auto does up to tensor=2."""


class ParallelSection(Section):
    """How the policy is distributed over ranks."""

    tensor: StrictInt = Field(1, ge=1)
    """Tensor-parallel size: ranks that share each layer. [ranks]"""
    sequence: bool = False
    """Sequence parallelism: tensor-parallel ranks also share the positions between their layers. Saves memory."""
    pipeline: StrictInt = Field(1, ge=1)
    """Pipeline-parallel size: stages that share the layers. [ranks]"""
    virtual_pipeline: StrictInt = Field(1, ge=1)
    """Runs of layers that each pipeline stage holds and alternates between: smaller bubbles, more messages. [runs]"""
    context: StrictInt = Field(1, ge=1)
    """Context-parallel size: ranks that share each sequence. [ranks]"""
    expert: StrictInt = Field(1, ge=1)
    """Expert-parallel size: ranks of a pipeline stage over which the experts are distributed. [ranks]"""
    data: StrictInt = Field(1, ge=1)
    """Data-parallel size: copies of the policy that share a batch. [ranks]"""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Collective library; auto is nccl on GPUs and gloo on CPUs."""
    timeout_s: StrictFloat = Field(600.0, gt=0)
    """Longest time that a collective waits for another rank before it fails. [s]"""
    control_timeout_s: float = Field(14400.0, gt=0)
    """Longest time that ranks wait for rank 0 to sample, judge or distribute weights before they fail. [s]"""

    @property
    def hang_s(self) -> float:
        """Time after which a rank without progress counts as hanging. Its peers fail later, and cannot say why. [s]"""
        return 0.8 * self.timeout_s


class OptimizerSection(Section):
    """Adam and its learning rate."""

    lr: StrictFloat = Field(1e-6, gt=0)
    """Peak learning rate. [per optimizer step]"""
    min_lr: StrictFloat = Field(0.0, ge=0)
    """Learning rate at the end of a linear or cosine decay. [per optimizer step]"""
    warmup_steps: StrictInt = Field(0, ge=0)
    """Linear warm-up from 0. [optimizer steps]"""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate from the warm-up to the end of the run."""
    beta1: StrictFloat = Field(0.9, ge=0, lt=1)
    """Adam's decay of the mean gradient. [fraction]"""
    beta2: StrictFloat = Field(0.999, ge=0, lt=1)
    """Adam's decay of the mean squared gradient. [fraction]"""
    eps: StrictFloat = Field(1e-8, gt=0)
    """Constant added to the root of the mean squared gradient. [gradient]"""
    weight_decay: StrictFloat = Field(0.0, ge=0)
    """Decoupled weight decay. [per unit of learning rate]"""
    clip_grad: StrictFloat = Field(1.0, ge=0)
    """Largest global L2 norm of the gradient; 0 does not clip. [gradient]"""
    max_skipped_updates: StrictInt = Field(3, ge=0)
    """Non-finite updates in a row that may be skipped; one more stops the run. [optimizer steps]"""

    @model_validator(mode="after")
    def _min_lr_is_a_minimum(self) -> OptimizerSection:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr} and lr is {self.lr}: lower min_lr or raise lr.")
        return self


class BatchSection(Section):
    """How a rollout batch becomes optimizer steps."""

    updates_per_rollout: StrictInt = Field(8, ge=1)
    """Optimizer steps into which one rollout batch is divided equally. [optimizer steps]"""
    micro_batch_tokens: StrictInt = Field(16384, ge=1)
    """Most positions of a forward pass, over its context-parallel ranks; a longer sequence has its own. [tokens]"""
    packed: bool = True
    """Place the sequences of a forward pass one behind another; false pads each to the longest."""


class RunConfig(Section):
    """Everything that one training run depends on."""

    run: RunSection
    """The run."""
    model: ModelSection
    """The policy."""
    parallel: ParallelSection = ParallelSection()
    """Layout of the policy over ranks."""
    data: DataSection
    """Prompts."""
    rewards: RewardsSection
    """Rewards."""
    rollout: RolloutSection = RolloutSection()
    """Sampling."""
    algorithm: AlgorithmSection = AlgorithmSection()
    """The algorithm."""
    optimizer: OptimizerSection = OptimizerSection()
    """The optimizer."""
    batch: BatchSection = BatchSection()
    """Batch sizes."""
    monitor: MonitorSection = MonitorSection()
    """Logs and samples."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluations during training."""
    weight_sync: WeightSyncSection = WeightSyncSection()
    """Weights for the rollout servers."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Checkpoints."""
    cluster: ClusterSection = ClusterSection()
    """The machines."""
    slurm: SlurmSection = SlurmSection()
    """The SLURM job."""

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """Sources of prompts with every setting filled in, in the order of the file; one of them for data.path."""
        data, rollout = self.data, self.rollout
        given = data.sources or (DataSource(name="data", path=data.path),)
        defaults = {
            **{name: getattr(data, name) for name in ("prompt_field", "answer_field", "answer_format")},
            **{name: getattr(data, name) for name in ("system_prompt", "instruction")},
            **{name: getattr(rollout, name) for name in ("temperature", "samples_per_prompt")},
        }
        return tuple(self._with_defaults(source, defaults) for source in given)

    def _with_defaults(self, source: DataSource, defaults: Mapping[str, Any]) -> DataSource:
        judged = {"verifier": source.verifier or self.rewards.verifier, "verifier_arguments": source.verifier_arguments}
        if judged["verifier_arguments"] is None:
            judged["verifier_arguments"] = self.rewards.arguments if source.verifier is None else {}
        missing = {name: value for name, value in defaults.items() if getattr(source, name) is None}
        return source.model_copy(update={**judged, **missing})

    @property
    def world_size(self) -> int:
        """Ranks of the trainer."""
        parallel = self.parallel
        return parallel.tensor * parallel.pipeline * parallel.context * parallel.data

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the prompts that each source gives; they add up to 1."""
        weights = [source.weight for source in self.sources]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """Sampling temperature of each source; None where all are sampled at `temperature`."""
        temperatures = tuple(source.temperature or self.rollout.temperature for source in self.sources)
        return temperatures if len(set(temperatures)) > 1 else None

    @property
    def temperature(self) -> float:
        """Sampling temperature of all sources, or that of the rollout where they differ."""
        own = self.sources[0].temperature
        return self.rollout.temperature if self.temperatures is not None or own is None else own

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Responses to a prompt of each source. [sequences]"""
        return tuple(source.samples_per_prompt or self.rollout.samples_per_prompt for source in self.sources)

    @property
    def mean_group_size(self) -> float:
        """Responses to a prompt, over all sources by their weights. [sequences]"""
        if len(set(self.group_sizes)) == 1:
            return float(self.group_sizes[0])
        return sum(share * size for share, size in zip(self.shares, self.group_sizes, strict=True))

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one rollout batch; the most that it can have where sources differ in their group size."""
        return self.rollout.prompts_per_step * max(self.group_sizes)

    @property
    def sequences_per_update(self) -> int:
        """Sequences of one optimizer step, over all ranks; their mean where sources differ in their group size."""
        return int(self.rollout.prompts_per_step * self.mean_group_size) // self.batch.updates_per_rollout

    @property
    def selects_by_current(self) -> bool:
        """Whether later optimizer steps select by the log-probs of the policy that they are about to update."""
        chosen = self.algorithm.selection
        has_later_steps = self.batch.updates_per_rollout > 1 or self.algorithm.old_log_probs == "rollout"
        return (chosen.scope, chosen.log_probs) == ("mini_batch", "current") and has_later_steps

    @property
    def defers_backwards(self) -> bool:
        """Whether later optimizer steps always run all forwards before the first backward, and keep what that needs."""
        return self.selects_by_current and self.algorithm.selection.method == "deferred"

    @property
    def may_correct_gradients(self) -> bool:
        """Whether later optimizer steps may correct gradients for a selection.

        `auto` does so if the first optimizer step, which then selects for nothing, shows that it pays; not in a
        deterministic run, since what fits into memory may change from run to run and a correction differs by rounding.
        """
        method = self.algorithm.selection.method
        by_choice = not self.run.deterministic and self.algorithm.old_log_probs != "rollout"
        return self.selects_by_current and (method == "correction" or (method == "auto" and by_choice))

    @property
    def fewest_sequences_per_update(self) -> int:
        """Sequences of one optimizer step, over all ranks, if every prompt has the smallest group."""
        return self.rollout.prompts_per_step * min(self.group_sizes) // self.batch.updates_per_rollout

    @property
    def group_multiple(self) -> int:
        """Number that divides the groups of a smaller rollout batch, so that its optimizer steps have equal sizes.

        It is 1 where sources differ in their group size: sizes of optimizer steps then differ by one sequence.
        """
        updates, sizes = self.batch.updates_per_rollout, set(self.group_sizes)
        return updates // gcd(updates, *sizes) if len(sizes) == 1 else 1

    @property
    def fewest_groups(self) -> int:
        """Smallest rollout batch that has work for every data-parallel rank in every optimizer step. [groups]"""
        sequences_per_rank = 2 if self.algorithm.selection.scope == "micro_batch" else 1
        sequences = self.batch.updates_per_rollout * self.parallel.data * sequences_per_rank
        groups = ceil(sequences / min(self.group_sizes))
        return ceil(groups / self.group_multiple) * self.group_multiple

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.run.steps * self.batch.updates_per_rollout
