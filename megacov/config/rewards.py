"""Settings of the rewards: the verifier, and the processes that call it."""

from __future__ import annotations

from pydantic import Field, JsonValue, StrictFloat, StrictInt

from megacov.config.section import Section


class RewardsSection(Section):
    """Rewards."""

    verifier: str = Field(min_length=1)
    """Function that judges a response: one of megacov's own (docs/verifiers.md), or package.module:function."""
    arguments: dict[str, JsonValue] = Field({})
    """Keyword arguments of the verifier, as in {tolerance: 0.01}."""
    allow_code: bool = False
    """Let the verifier code run the programs of responses in a sandbox (docs/code_and_judges.md)."""
    workers: StrictInt = Field(4, ge=1, le=1024)
    """Processes that call the verifier, each for one response at a time, on the machine of rank 0. [processes]"""
    timeout_s: StrictFloat = Field(30.0, gt=0)
    """Longest time that the verifier may take for a response; a later verdict is a failure. [s]"""
    start_timeout_s: StrictFloat = Field(300.0, gt=0)
    """Longest time to import the verifier in a process. [s]"""
    max_failed_share: StrictFloat = Field(0.05, ge=0, le=1)
    """Largest share of a step's responses on which the verifier may fail; they score 0. More end the run. [share]"""
    overlong_buffer: StrictInt = Field(0, ge=0)
    """Last tokens before the longest response over which rewards fall; 0 for none. DAPO has 4096 of 20480. [tokens]"""
    overlong_penalty: StrictFloat = Field(1.0, gt=0)
    """Reward that a response of the longest length loses by that; filter_groups does not see it. [reward]"""
