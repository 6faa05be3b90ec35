"""How many tokens a covariance ratio selects, and whether they are too few to act."""

from __future__ import annotations

from math import ceil, floor, log10

from megacov.config.schema import RunConfig
from megacov.config.selections import LARGE_RATIO

FEWEST_SELECTED = 5
"""With fewer tokens a method hardly acts: the paper's runs select about a hundred in each mini-batch."""

_SCOPES = {"mini_batch": "a mini-batch", "rollout_batch": "a rollout batch", "micro_batch": "a micro-batch"}


def covariance_ratio(config: RunConfig) -> float | None:
    """The share of tokens that a covariance method selects; None without one."""
    selection = config.algorithm.selection
    return selection.ratio if selection.name in ("kl_cov", "clip_cov") else None


def tokens_in_scope(config: RunConfig, response_tokens: float) -> int:
    """Response tokens that compete in one selection.

    Args:
        config: a configuration with a selection.
        response_tokens: response tokens of a whole rollout batch.

    Returns:
        Tokens; in micro-batch scope no more than a micro-batch holds.
    """
    scope = config.algorithm.selection.scope
    updates = 1 if scope == "rollout_batch" else config.batch.updates_per_rollout
    tokens = int(response_tokens / updates)
    if scope == "micro_batch":
        longest = config.data.max_prompt_length + config.rollout.max_response_length
        tokens = min(tokens // config.parallel.data, max(config.batch.micro_batch_tokens, longest))
    return tokens


def most_tokens_in_scope(config: RunConfig) -> int:
    """Response tokens that compete in one selection if every response has the greatest length."""
    return tokens_in_scope(config, config.sequences_per_step * config.rollout.max_response_length)


def num_selected(ratio: float, tokens: int) -> int:
    """Tokens that the ratio selects, as in `megacov.selection.quota`."""
    return min(max(1, int(ratio * tokens)), tokens)


def why_too_few(config: RunConfig, tokens: int, *, at_most: bool) -> str | None:
    """A sentence where the ratio selects too few tokens to act.

    Args:
        config: the configuration that has the ratio.
        tokens: response tokens that compete in one selection.
        at_most: whether `tokens` is a bound rather than a count.

    Returns:
        The sentence, which names the smallest sensible ratio; None if the ratio selects enough.
    """
    ratio = covariance_ratio(config)
    if ratio is None or num_selected(ratio, tokens) >= FEWEST_SELECTED:
        return None
    bound = "at most " if at_most else ""
    scope = _SCOPES[config.algorithm.selection.scope]
    selects = (
        f"algorithm.selection.ratio is {ratio:g}, which selects {bound}{num_selected(ratio, tokens)} of the {bound}"
        f"{tokens:,} response tokens of {scope}: with so few, {config.algorithm.selection.name} acts like plain GRPO"
    )
    smallest = _rounded_up(FEWEST_SELECTED / tokens) if tokens else 1.0
    if smallest >= 1.0:
        return f"{selects}; raise rollout.prompts_per_step or rollout.samples_per_prompt."
    allow = " with algorithm.selection.allow_large_ratio=true" if smallest >= LARGE_RATIO else ""
    return (
        f"{selects}; the smallest sensible ratio here is {smallest:g}{allow}, which selects {FEWEST_SELECTED}, and "
        "a larger batch allows a smaller one."
    )


def _rounded_up(value: float) -> float:
    """Two significant digits, never below the value."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return float(f"{ceil(value / unit - 1e-9) * unit:.2g}")
