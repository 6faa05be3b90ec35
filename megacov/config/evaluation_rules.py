"""Rules about evaluations during training, collected by `rules`."""

from __future__ import annotations

from collections.abc import Callable

from megacov.config.schema import RunConfig


def an_evaluation_has_servers_while_training(config: RunConfig) -> str | None:
    """Colocated servers have no memory while the trainer computes, which is when most of an evaluation is sampled."""
    if config.evaluation.suite is None or not config.rollout.colocated:
        return None
    return (
        "evaluation.suite is set and rollout.colocated is true, whose servers hold no weights while the trainer "
        "computes: set evaluation.suite=null, and score checkpoints with `megacov evaluate`."
    )


def ranks_wait_for_the_last_evaluation(config: RunConfig) -> str | None:
    """All ranks wait while rank 0 finishes the last evaluation of a run."""
    wait_s, ranks_s = config.evaluation.timeout_s, config.parallel.control_timeout_s
    if config.evaluation.suite is None or wait_s < ranks_s:
        return None
    return (
        f"evaluation.timeout_s is {wait_s:g} and parallel.control_timeout_s is {ranks_s:g}, so that ranks may fail "
        "while rank 0 finishes the last evaluation: keep evaluation.timeout_s shorter."
    )


EVALUATION_RULES: tuple[Callable[[RunConfig], str | None], ...] = (
    an_evaluation_has_servers_while_training,
    ranks_wait_for_the_last_evaluation,
)
