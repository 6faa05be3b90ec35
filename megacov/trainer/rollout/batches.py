"""The rollout batch that ranks train on, from judged samples."""

from __future__ import annotations

from megacov.config import RunConfig
from megacov.data.packing import build_rollout_batch
from megacov.rewards.overlong import OverlongPenalty
from megacov.rollout import SampledGroups
from megacov.types import RolloutBatch


def make_batch(config: RunConfig, groups: SampledGroups) -> RolloutBatch:
    """Put the kept groups into tensors, with rewards lowered by the penalty for length.

    Args:
        config: the run's configuration.
        groups: judged samples of one batch.

    Returns:
        The batch, on the CPU.

    Raises:
        DataError: no sample has a token to learn from, or a response exceeds the limit.
    """
    return build_rollout_batch(
        groups.samples,
        max_response_length=config.rollout.max_response_length,
        mask_overlong=config.rollout.mask_overlong,
        temperatures=config.temperatures,
        penalties=OverlongPenalty.of_run(config).of_all(groups.samples),
    )
