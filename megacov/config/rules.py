"""Rules between settings of different sections, one small function each.

A rule returns None or a sentence that says what is wrong, which values disagree, and what to change. Rules inside one
section are validators in the schema.
"""

from __future__ import annotations

from collections.abc import Callable

from megacov.config.controller_rules import CONTROLLER_RULES
from megacov.config.evaluation_rules import EVALUATION_RULES
from megacov.config.losses import LOSS_SECTIONS
from megacov.config.model_split import choices, divisors
from megacov.config.old_log_prob_rules import the_servers_log_probs_are_enough
from megacov.config.reward_rules import REWARD_RULES
from megacov.config.rollout_rules import ROLLOUT_RULES
from megacov.config.schema import RunConfig
from megacov.config.selections import LARGE_RATIO
from megacov.config.server_rules import (
    colocated_servers_take_turns_with_the_trainer,
    engine_has_its_servers,
    every_server_has_its_devices,
    keys_are_of_servers_that_already_run,
    secrets_stay_out_of_files,
    servers_are_given_up_before_ranks,
    shards_for_requests_are_on_one_machine,
    staging_is_bounded,
    the_embedded_server_reads_weights_from_disk,
)
from megacov.errors import ConfigError

Rule = Callable[[RunConfig], str | None]


def ratio_is_a_fraction(config: RunConfig) -> str | None:
    """A covariance ratio is a small fraction; other code bases give the same number in percent."""
    selection = config.algorithm.selection
    if selection.name not in ("kl_cov", "clip_cov"):
        return None
    if selection.ratio < LARGE_RATIO or selection.allow_large_ratio:
        return None
    return (
        f"algorithm.selection.ratio is {selection.ratio}, a fraction of all tokens, and covariance methods act on less "
        f"than {LARGE_RATIO}: if it was a percentage set {selection.ratio / 100:g}, and if you mean it set "
        "algorithm.selection.allow_large_ratio=true."
    )


def a_loss_has_its_own_selection(config: RunConfig) -> str | None:
    """Some losses are defined by a selection that is theirs alone."""
    loss, selection = config.algorithm.loss, config.algorithm.selection
    pair = f"algorithm.loss.name is {loss.name} and algorithm.selection.name is {selection.name}: "
    if loss.own_selection not in (None, selection.name):
        return (
            f"{pair}{loss.name} is defined by its own selection, so set algorithm.selection.name={loss.own_selection}."
        )
    owners = {section.own_selection: name for name, section in LOSS_SECTIONS.items() if section.own_selection}
    if loss.needs_selection is None or owners.get(selection.name) in (None, loss.name):
        return None
    return (
        f"{pair}the selection belongs to the loss {owners[selection.name]}, so set "
        f"algorithm.loss.name={owners[selection.name]}, or another selection."
    )


def loss_and_selection_fit(config: RunConfig) -> str | None:
    """A loss that acts on selected tokens needs a selection; other losses cannot use one."""
    needs_selection = config.algorithm.loss.needs_selection
    return None if needs_selection is None else selection_mismatch(config, needs_selection=needs_selection)


def selection_mismatch(config: RunConfig, *, needs_selection: bool) -> str | None:
    """Why the selection does not suit a loss that needs one, or needs none; None if it does."""
    loss, selection = config.algorithm.loss, config.algorithm.selection
    pair = f"algorithm.loss.name is {loss.name} and algorithm.selection.name is {selection.name}: "
    if needs_selection and selection.name == "none":
        return f"{pair}{loss.name} acts on selected tokens, so set algorithm.selection.name, as in kl_cov or clip_cov."
    if not needs_selection and selection.name != "none":
        return f"{pair}{loss.name} treats all tokens alike, so set algorithm.selection.name=none, or change the loss."
    return None


def a_loss_at_the_rollout_needs_no_correction(config: RunConfig) -> str | None:
    """A ratio to the rollout server's log-probs already holds the weights of the rollout correction."""
    return correction_mismatch(config) if config.algorithm.loss.is_anchored_at_rollout else None


def correction_mismatch(config: RunConfig) -> str | None:
    """Why the rollout correction does not suit a loss that is anchored at the rollout server; None if it is off."""
    level = config.algorithm.rollout_correction.level
    if level == "none":
        return None
    return (
        f"algorithm.loss.name is {config.algorithm.loss.name}, whose ratio is to the rollout server's log-probs, and "
        f"algorithm.rollout_correction.level is {level}, which would weigh them twice: set it to none."
    )


def updates_divide_the_batch(config: RunConfig) -> str | None:
    """All optimizer steps of a rollout batch have the same size, or one sequence more where group sizes differ."""
    sequences, updates = config.sequences_per_step, config.batch.updates_per_rollout
    if sequences % updates == 0 or len(set(config.group_sizes)) > 1:
        return None
    possible = divisors(sequences)
    fitting = [n for n in possible if n < updates][-1:] + [n for n in possible if n > updates][:1]
    return (
        f"batch.updates_per_rollout is {updates}, which does not divide the {sequences} sequences of a rollout batch "
        f"(rollout.prompts_per_step {config.rollout.prompts_per_step} x {config.group_sizes[0]} samples_per_prompt): "
        f"set it to {choices(fitting)}, or change the batch."
    )


def every_rank_has_a_sequence(config: RunConfig) -> str | None:
    """Every optimizer step has work for every data-parallel rank."""
    fewest = config.fewest_sequences_per_update
    if fewest >= config.parallel.data:
        return None
    batch = config.rollout.prompts_per_step * min(config.group_sizes)
    at_least = "at least " if len(set(config.group_sizes)) > 1 else ""
    return (
        f"parallel.data is {config.parallel.data} and an optimizer step has {at_least}{fewest} sequences "
        f"({batch} in {config.batch.updates_per_rollout} updates): lower parallel.data or "
        "batch.updates_per_rollout, or raise rollout.prompts_per_step."
    )


def micro_batch_scope_has_two_sequences(config: RunConfig) -> str | None:
    """A group-relative advantage is constant in a sequence, so a sequence on its own has covariance 0 everywhere."""
    selection = config.algorithm.selection
    if selection.name not in ("kl_cov", "clip_cov") or selection.scope != "micro_batch":
        return None
    if config.fewest_sequences_per_update < 2 * config.parallel.data:
        return (
            f"algorithm.selection.scope is micro_batch, and parallel.data={config.parallel.data} ranks share "
            f"{config.fewest_sequences_per_update} sequences of an optimizer step: all tokens of one sequence share "
            "one advantage, so every covariance would be 0; lower parallel.data or set "
            "algorithm.selection.scope=mini_batch."
        )
    longest = config.data.max_prompt_length + config.rollout.max_response_length
    if config.batch.micro_batch_tokens >= 2 * longest:
        return None
    return (
        f"algorithm.selection.scope is micro_batch and batch.micro_batch_tokens is {config.batch.micro_batch_tokens}, "
        f"which may not hold two sequences of {longest} tokens (data.max_prompt_length + rollout.max_response_length): "
        "all tokens of one sequence share one advantage, so every covariance would be 0; raise "
        "batch.micro_batch_tokens or set algorithm.selection.scope=mini_batch."
    )


def method_saves_a_pass(config: RunConfig) -> str | None:
    """Deferred backwards and corrections give current log-probs of a whole optimizer step, which no other selection
    needs."""
    selection = config.algorithm.selection
    saves = {
        "deferred": "backwards wait for a selection in",
        "correction": "a gradient is corrected for a selection in",
    }
    if selection.method not in saves or (selection.scope, selection.log_probs) == ("mini_batch", "current"):
        return None
    other = "scope" if selection.scope != "mini_batch" else "log_probs"
    return (
        f"algorithm.selection.method is {selection.method} and algorithm.selection.{other} is "
        f"{getattr(selection, other)}: {saves[selection.method]} scope mini_batch by current log-probs alone; leave "
        f"the method out, or set algorithm.selection.{other}={'mini_batch' if other == 'scope' else 'current'}."
    )


def virtual_stages_have_a_pipeline(config: RunConfig) -> str | None:
    """Virtual stages need several pipeline ranks to alternate between."""
    parallel = config.parallel
    if parallel.virtual_pipeline == 1 or parallel.pipeline > 1:
        return None
    return (
        f"parallel.virtual_pipeline is {parallel.virtual_pipeline} and parallel.pipeline is 1: raise parallel.pipeline "
        "or set parallel.virtual_pipeline=1."
    )


def sequence_parallelism_has_tensor_parallelism(config: RunConfig) -> str | None:
    """Sequence parallelism distributes positions over tensor-parallel ranks."""
    if not config.parallel.sequence or config.parallel.tensor > 1:
        return None
    return "parallel.sequence is true and parallel.tensor is 1: raise parallel.tensor or set parallel.sequence=false."


def experts_are_shared_out_within_a_stage(config: RunConfig) -> str | None:
    """Expert-parallel ranks are taken from the ranks of a pipeline stage."""
    parallel = config.parallel
    ranks = parallel.tensor * parallel.context * parallel.data
    if ranks % parallel.expert == 0:
        return None
    return (
        f"parallel.expert is {parallel.expert} and a pipeline stage has {ranks} ranks (parallel.tensor "
        f"{parallel.tensor} x parallel.context {parallel.context} x parallel.data {parallel.data}), which it does not "
        f"divide: set parallel.expert to {choices(divisors(ranks))}."
    )


def repeatable_samples_come_from_the_embedded_server(config: RunConfig) -> str | None:
    """An SGLang server gives n equal completions to a request for n completions with a seed."""
    if not config.run.deterministic or config.rollout.engine == "embedded":
        return None
    return (
        f"run.deterministic is true and rollout.engine is {config.rollout.engine}: only the embedded server gives the "
        "same samples again; set run.deterministic=false or rollout.engine=embedded."
    )


RULES: tuple[Rule, ...] = (
    secrets_stay_out_of_files,
    ratio_is_a_fraction,
    a_loss_has_its_own_selection,
    loss_and_selection_fit,
    a_loss_at_the_rollout_needs_no_correction,
    the_servers_log_probs_are_enough,
    updates_divide_the_batch,
    every_rank_has_a_sequence,
    engine_has_its_servers,
    keys_are_of_servers_that_already_run,
    servers_are_given_up_before_ranks,
    staging_is_bounded,
    shards_for_requests_are_on_one_machine,
    every_server_has_its_devices,
    micro_batch_scope_has_two_sequences,
    method_saves_a_pass,
    virtual_stages_have_a_pipeline,
    sequence_parallelism_has_tensor_parallelism,
    experts_are_shared_out_within_a_stage,
    repeatable_samples_come_from_the_embedded_server,
    *CONTROLLER_RULES,
    *REWARD_RULES,
    *ROLLOUT_RULES,
    the_embedded_server_reads_weights_from_disk,
    colocated_servers_take_turns_with_the_trainer,
    *EVALUATION_RULES,
)


def check_rules(config: RunConfig) -> None:
    """Apply all rules.

    Args:
        config: configuration that is valid by its schema.

    Raises:
        ConfigError: a rule is broken; the sentence is that of the first such rule.
    """
    for rule in RULES:
        sentence = rule(config)
        if sentence is not None:
            raise ConfigError(sentence)
