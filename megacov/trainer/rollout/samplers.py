"""The samplers that a run asks for."""

from __future__ import annotations

from megacov.config import RunConfig
from megacov.rollout import DecodeTokens, Fleet, GroupSettings, PartialRollouts, PromptSampler, Sampler, Verifier


def make_sampler(config: RunConfig, fleet: Fleet, verify: Verifier, decode: DecodeTokens) -> Sampler:
    """Sample batches of judged groups."""
    prompt_sampler = _make_prompt_sampler(config, fleet, verify)
    return Sampler(prompt_sampler, _make_partial_rollouts(config, decode), config.rollout.over_sample)


def _make_prompt_sampler(config: RunConfig, fleet: Fleet, verify: Verifier) -> PromptSampler:
    rollout = config.rollout
    return PromptSampler(
        clients=[fleet],
        verify=verify,
        samples_per_prompt=max(config.group_sizes),
        by_source=_settings_of_sources(config),
        max_response_length=rollout.max_response_length,
        temperature=config.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=rollout.stop,
        stop_token_ids=rollout.stop_token_ids,
        max_concurrency=rollout.max_concurrency,
        filter_groups=rollout.filter_groups,
        max_filter_rounds=rollout.max_filter_rounds,
    )


def _settings_of_sources(config: RunConfig) -> tuple[GroupSettings, ...]:
    temperatures = config.temperatures or (config.temperature,) * len(config.sources)
    return tuple(map(GroupSettings, config.group_sizes, temperatures))


def _make_partial_rollouts(config: RunConfig, decode: DecodeTokens) -> PartialRollouts:
    rollout = config.rollout
    return PartialRollouts(
        decode=decode,
        max_staleness=rollout.max_staleness,
        extra_prompts=rollout.extra_prompts,
        partial_after_s=rollout.partial_after_s,
        group_multiple=config.group_multiple,
        fewest_groups=config.fewest_groups,
    )
