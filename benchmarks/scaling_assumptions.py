"""The assumptions of the simulation of a step, each with its unit and source; see docs/scaling.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import log2
from typing import Any

from megacov.plan import ModelSizes, total_parameters


def assume(value: float, unit: str, source: str) -> Any:
    """A field with its unit and source. The type is Any because `dataclasses.field` claims to have the field's type."""
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Gpu:
    """A GPU with its links, described by peak rates. The defaults are those of an H100 SXM."""

    flops: float = assume(989e12, "FLOP/s", "H100 data sheet, bfloat16 without sparsity")
    memory: float = assume(3.35e12, "B/s", "H100 data sheet")
    capacity: float = assume(80 * 2**30, "B", "H100 data sheet")
    nvlink: float = assume(450e9, "B/s", "H100 data sheet, NVLink 4, one direction")
    network: float = assume(50e9, "B/s", "one port of 400 Gb/s for each GPU")
    host: float = assume(25e9, "B/s", "half of PCIe 5 x16, as GPUs of a node share the main memory")


@dataclass(frozen=True)
class Shares:
    """Shares of a peak that are reached. The first two are fitted to published times; see docs/scaling.md."""

    training: float = assume(0.277, "of flops", "fitted: actor log-probs of miles, 33 s")
    decoding: float = assume(0.358, "of memory", "fitted: rollout of miles, 307 s")
    nvlink: float = assume(0.7, "of nvlink", "assumed, as in megacov/plan/suggest.py")
    network: float = assume(0.7, "of network", "assumed, as in megacov/plan/suggest.py")
    streaming: float = assume(0.8, "of memory", "assumed: optimizer and logits, read once from end to end")


@dataclass(frozen=True)
class Costs:
    """Times that do not follow from bytes or arithmetic."""

    hop: float = assume(5e-6, "s", "assumed: latency of a collective, for each doubling of its ranks")
    server_step: float = assume(1e-3, "s", "assumed: scheduler and sampling of one decoding step")
    request: float = assume(1e-3, "s", "assumed: trainer's CPU time for one HTTP request to one server")
    micro_batch: float = assume(5e-3, "s", "assumed: host and kernel launches of a pass beyond what the GPU hides")


@dataclass(frozen=True)
class Lengths:
    """Responses: log-normal, cut at the greatest length allowed. Samples are quantiles, so nothing is random."""

    mean: float = assume(4000, "tokens", "paper: about 4k late in 32B runs of KL-Cov and Clip-Cov")
    spread: float = assume(1.5, "", "sigma of the logarithm: miles, mean 4585 and 33 % cut at 8192")
    prompt: float = assume(150, "tokens", "assumed: a problem of DAPO-Math with its instruction")


def described(group: object) -> Iterator[tuple[str, float, str, str]]:
    """Yield name, value, unit and source of each assumption in one of the dataclasses above."""
    for one in fields(group):  # type: ignore[arg-type]
        name = f"{type(group).__name__}.{one.name}"
        yield name, getattr(group, one.name), one.metadata["unit"], one.metadata["source"]


@dataclass(frozen=True)
class Assumptions:
    """All assumptions."""

    gpu: Gpu = field(default_factory=Gpu)
    shares: Shares = field(default_factory=Shares)
    costs: Costs = field(default_factory=Costs)
    lengths: Lengths = field(default_factory=Lengths)

    def latency(self, ranks: int) -> float:
        """Seconds of a collective of so many ranks that moves no bytes."""
        return self.costs.hop * log2(ranks) if ranks > 1 else 0.0


@dataclass(frozen=True)
class Model:
    """Sizes of a model that the simulation needs.

    active: parameters with which a token is multiplied; the embedding is only looked up.
    attention_layers: number of layers that keep keys and values.
    state_bytes: state that layers of linear attention keep for a sequence.
    """

    parameters: int
    active: int
    layers: int
    attention_layers: int
    hidden_size: int
    query_size: int
    key_size: int
    vocab_size: int
    state_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bfloat16."""
        return 2 * self.parameters

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, in bfloat16."""
        return 4 * self.attention_layers * self.key_size

    def forward_flops(self, tokens: float, squares: float) -> float:
        """Floating-point operations of a forward pass over sequences.

        Args:
            tokens: number of tokens of all sequences.
            squares: sum of the squares of their lengths, half of which causal attention computes.

        Returns:
            The number of operations.
        """
        return 2 * self.active * tokens + 2 * self.attention_layers * self.query_size * squares


def dense(sizes: ModelSizes) -> Model:
    """The model of the simulation for a model without experts."""
    parameters = total_parameters(sizes)
    looked_up = 0 if sizes.tie_word_embeddings else sizes.vocab_size * sizes.hidden_size
    return Model(
        parameters=parameters,
        active=parameters - looked_up,
        layers=sizes.num_layers,
        attention_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        query_size=sizes.query_size,
        key_size=sizes.key_size,
        vocab_size=sizes.vocab_size,
    )
