"""Simulations of set-ups with published times. Two times of one system are fitted, and all others are predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.scaling_assumptions import Assumptions, Gpu, Lengths, Model, dense
from benchmarks.scaling_rollout import Rollout, Servers, response_lengths, simulate_rollout
from benchmarks.scaling_step import push_seconds
from benchmarks.scaling_trainer import TrainerSeconds, Training, train_seconds
from megacov.plan import Layout, read_model_sizes
from megacov.plan.activations import Recompute

_MODELS = Path(__file__).parents[1] / "yaml_configs" / "models"

H200 = Gpu(memory=4.8e12, capacity=141e9)

QWEN_27B = Model(
    # The weights are 53 GB, including an embedding of 248,320 x 5,120 that is looked up. Every fourth layer keeps keys
    # and values, for 4 heads of 256; the others keep 151 MB for each sequence. The heads are assumed, and everything
    # else is from miles' page.
    parameters=26_500_000_000,
    active=25_230_000_000,
    layers=64,
    attention_layers=16,
    hidden_size=5120,
    query_size=6144,
    key_size=1024,
    vocab_size=248_320,
    state_bytes=151_000_000,
)


@dataclass(frozen=True)
class Setup:
    """A published set-up.

    mean: published mean number of tokens of a response.
    longest: greatest number of tokens of a response.
    """

    model: Model
    gpu: Gpu
    prompts: int
    samples: int
    mean: float
    longest: int
    updates: int
    layout: Layout
    recompute: Recompute
    micro_batch_tokens: int
    servers: Servers


@dataclass(frozen=True)
class Comparison:
    """A published value beside the simulated one. role: fitted or predicted."""

    what: str
    published: float
    simulated: float
    unit: str
    role: str

    @property
    def ratio(self) -> float:
        """Simulated divided by published value."""
        return self.simulated / self.published


def miles() -> Setup:
    """Qwen3.8-27B on 8 H200: TP 4, everything recomputed, an engine on each GPU; miles docs/models/qwen/qwen3-8.md."""
    layout = Layout(tensor=4, sequence=True, data=2)
    return Setup(QWEN_27B, H200, 32, 8, 4585, 8192, 1, layout, "full", 8192, Servers(8, 1, 0.8 * H200.capacity))


def nemo(*, gpus: int, fraction: float) -> Setup:
    """Qwen3-32B on H100 in NeMo-RL 0.5: TP 4, PP 4, one sequence in each pass, 4 optimizer steps; engines of TP 4."""
    model = dense(read_model_sizes(_MODELS / "qwen3-32b" / "config.json"))
    layout = Layout(tensor=4, sequence=True, pipeline=4, data=2)
    servers = Servers(gpus // 4, 4, fraction * Gpu().capacity)
    # Both the 3251 and the 4096 tokens include the prompt.
    prompt = int(Lengths().prompt)
    return Setup(model, Gpu(), 64, 32, 3251 - prompt, 4096 - prompt, 4, layout, "none", 1, servers)


def simulate(setup: Setup, given: Assumptions) -> tuple[Rollout, float, TrainerSeconds]:
    """Simulate a set-up.

    Args:
        setup: a published set-up.
        given: assumptions, whose GPU and lengths are replaced by those of the set-up.

    Returns:
        Rollout, seconds of a push on the trainer's own GPUs, and the trainer's seconds.
    """
    given = replace(given, gpu=setup.gpu, lengths=replace(given.lengths, mean=setup.mean))
    responses = response_lengths(given.lengths, number=setup.prompts * setup.samples, longest=setup.longest)
    rollout = simulate_rollout(setup.model, given, setup.servers, responses, samples=setup.samples)
    lengths = tuple(n + int(given.lengths.prompt) for n in responses)[:: setup.updates]
    training = Training(setup.layout, setup.recompute, setup.micro_batch_tokens, setup.updates, False, 0, 0.0, 0, 0.0)
    sync = push_seconds(setup.model, given, setup.layout, setup.servers, colocated=True)
    return rollout, sync, train_seconds(setup.model, given, training, lengths)


def compare(given: Assumptions) -> Iterator[Comparison]:
    """Yield every published value of these set-ups beside the simulated one."""
    rollout, sync, trainer = simulate(miles(), given)
    on = "miles, 27B, 8 H200"
    yield Comparison(f"{on}: rollout", 307, rollout.seconds, "s", "fitted")
    yield Comparison(f"{on}: actor log-probs", 33, trainer.log_probs, "s", "fitted")
    yield Comparison(f"{on}: reference log-probs", 100, trainer.log_probs, "s", "predicted")
    rest = trainer.total - trainer.log_probs
    yield Comparison(f"{on}: rest of training", 415 - 100 - 33, rest, "s", "predicted")
    yield Comparison(f"{on}: weight sync", 2.5, sync, "s", "predicted")
    tokens = 2048 * 3251
    rollout, sync, trainer = simulate(nemo(gpus=32, fraction=0.6), given)
    step = rollout.seconds + sync + trainer.total
    on = "NeMo-RL, Qwen3-32B, 32 H100, colocated"
    yield Comparison(f"{on}: step", 376, step, "s", "predicted")
    yield Comparison(f"{on}: tokens/s/GPU", 571, tokens / step / 32, "", "predicted")
    rollout, sync, trainer = simulate(nemo(gpus=32, fraction=0.8), given)
    step = max(rollout.seconds, trainer.total) + sync
    on = "NeMo-RL, Qwen3-32B, 32 + 32 H100, one step off"
    yield Comparison(f"{on}: step", 200, step, "s", "predicted")
    yield Comparison(f"{on}: tokens/s/GPU", 538, tokens / step / 64, "", "predicted")
