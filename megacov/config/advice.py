"""Configurations that can run but hardly do what the user wants: one small function for each, as for the rules."""

from __future__ import annotations

from math import ceil

from megacov.config.cluster import ClusterSection
from megacov.config.rules import Rule
from megacov.config.schema import RunConfig
from megacov.config.selection_size import most_tokens_in_scope, why_too_few

# Above any machine's memory, and below the same memory in MiB.
_LARGEST_GIB = {"gpu_memory_gib": 2048.0, "gpu_reserve_gib": 128.0, "node_memory_gib": 65536.0}
# A message of weights below this is slower than its headers; buckets are usually given in MiB.
_SMALLEST_BUCKET_BYTES = 4096

_WATCHDOG_S = 300.0  # SGLang's default


def kl_cov_needs_a_second_update(config: RunConfig) -> str | None:
    """KL-Cov's penalty has gradient 0 as long as the policy is still the old one."""
    if config.algorithm.loss.name != "kl_cov" or config.batch.updates_per_rollout > 1:
        return None
    if config.algorithm.old_log_probs == "rollout":
        return None
    return (
        "algorithm.loss.name is kl_cov and batch.updates_per_rollout is 1: the penalty measures the distance to "
        "the old policy, which is 0 on the first update, so KL-Cov does nothing; raise batch.updates_per_rollout."
    )


def the_sign_of_a_mismatch_is_noise(config: RunConfig) -> str | None:
    """The gradient of |d| is as large for a mismatch of rounding as for a policy that has moved far."""
    algorithm = config.algorithm
    estimator = algorithm.loss.hyperparameters().get("estimator")
    if algorithm.old_log_probs == "recompute" or (algorithm.loss.name, estimator) != ("kl_cov", "abs"):
        return None
    return (
        "algorithm.old_log_probs is rollout and algorithm.loss.estimator is abs: until the policy has moved, the sign "
        "of KL-Cov's penalty is that of the rounding between server and trainer; set algorithm.loss.estimator=k2."
    )


def ratio_selects_some_tokens(config: RunConfig) -> str | None:
    """The paper's ratios are meant for mini-batches of a hundred thousand tokens and more."""
    return why_too_few(config, most_tokens_in_scope(config), at_most=True)


def band_needs_normalized_advantages(config: RunConfig) -> str | None:
    """Clip-Cov's band is absolute, so it depends on the scale of advantages."""
    selection = config.algorithm.selection
    advantages = config.algorithm.advantages
    if selection.name != "clip_cov" or advantages.has_unit_scale:
        return None
    plain = "name is rloo" if advantages.name == "rloo" else "normalize_std is false"
    return (
        f"algorithm.selection takes covariances between {selection.lower} and {selection.upper} and "
        f"algorithm.advantages.{plain}: the paper's band of 1 to 5 is meant for normalized advantages; "
        "scale the band to the rewards."
    )


def sampling_is_the_policy(config: RunConfig) -> str | None:
    """Top-p and top-k draw from another distribution than the one whose log-probs are trained."""
    rollout = config.rollout
    if rollout.top_p == 1 and rollout.top_k == -1:
        return None
    return (
        f"rollout.top_p is {rollout.top_p} and rollout.top_k is {rollout.top_k}: log-probs and entropy are those "
        "of the whole vocabulary, so the samples are not drawn from the policy being trained; set top_p=1 and top_k=-1."
    )


def micro_batch_scope_depends_on_the_layout(config: RunConfig) -> str | None:
    """Selection inside a micro-batch changes with the layout."""
    if config.algorithm.selection.scope != "micro_batch":
        return None
    return (
        "algorithm.selection.scope is micro_batch: the selected tokens change with parallel.data, "
        "batch.micro_batch_tokens and batch.packed; use it to compare with other code, and mini_batch otherwise."
    )


def min_lr_needs_a_decay(config: RunConfig) -> str | None:
    """A constant learning rate has no minimum."""
    optimizer = config.optimizer
    if optimizer.min_lr == 0 or optimizer.decay != "constant":
        return None
    return (
        f"optimizer.min_lr is {optimizer.min_lr} and optimizer.decay is constant, which never gets down to it: set "
        "optimizer.decay to linear or cosine, or remove min_lr."
    )


def warmup_ends(config: RunConfig) -> str | None:
    """A warm-up longer than the run never reaches the learning rate."""
    warmup_steps = config.optimizer.warmup_steps
    if warmup_steps < config.num_updates:
        return None
    return (
        f"optimizer.warmup_steps is {warmup_steps} and the run has {config.num_updates} optimizer steps "
        f"(run.steps {config.run.steps} x batch.updates_per_rollout {config.batch.updates_per_rollout}): the learning "
        "rate never reaches optimizer.lr; shorten the warm-up."
    )


def stale_samples_are_corrected(config: RunConfig) -> str | None:
    """Samples of older weights are not the policy's own."""
    if config.rollout.max_staleness == 0 or config.algorithm.rollout_correction.level != "none":
        return None
    if config.algorithm.old_log_probs == "rollout":  # the ratio to the server's log-probs corrects them
        return None
    return (
        f"rollout.max_staleness is {config.rollout.max_staleness} and algorithm.rollout_correction.level is none: "
        "samples of older weights count as the policy's own; set algorithm.rollout_correction.level=token."
    )


def over_sampled_prompts_run_at_once(config: RunConfig) -> str | None:
    """Prompts that wait for others to end do not shorten a step."""
    rollout = config.rollout
    started = ceil(round(rollout.over_sample * rollout.prompts_per_step, 6))
    if rollout.over_sample == 1 or rollout.max_concurrency >= started:
        return None
    return (
        f"rollout.max_concurrency is {rollout.max_concurrency} and a step starts {started} prompts "
        f"(rollout.over_sample {rollout.over_sample} x rollout.prompts_per_step {rollout.prompts_per_step}): some wait "
        f"for others to end; set rollout.max_concurrency={started}."
    )


def memory_is_in_gib(config: RunConfig) -> str | None:
    """Tools such as nvidia-smi and sinfo show memory in MiB."""
    for name, largest in _LARGEST_GIB.items():
        value = getattr(config.cluster, name)
        if value > largest:
            return (
                f"cluster.{name} is {value:,g} GiB, more than any machine has: if it was in MiB, set "
                f"{value / 1024:g}; its default is {ClusterSection.model_fields[name].default:g}."
            )
    return None


def bucket_is_in_bytes(config: RunConfig) -> str | None:
    """Other code bases give the size of a bucket in MiB."""
    size = config.weight_sync.bucket_bytes
    if size >= _SMALLEST_BUCKET_BYTES or not config.weight_sync.traits.in_buckets:
        return None
    return f"weight_sync.bucket_bytes is {size} bytes: if it was in MiB, set {size * 2**20}."


def prompts_repeat(config: RunConfig, num_prompts: int, *, source: int = 0) -> str | None:
    """Why a step holds a prompt more than once; None if it does not. Not part of `ADVICE`, which sees no data.

    Args:
        config: configuration of the run.
        num_prompts: prompts of one source.
        source: place of that source among those of the run.

    Returns:
        One sentence, or None.
    """
    rollout = config.rollout
    wanted, extra = rollout.prompts_per_step + rollout.extra_prompts, ""
    if len(config.sources) > 1:
        own, share = config.sources[source], config.shares[source]
        if num_prompts >= ceil(wanted * share - 1e-9):
            return None
        return (
            f"source {own.name} of data.sources has {num_prompts} prompts and a share of {share:.3g} of the {wanted} "
            "prompts of a step: each step holds some of its prompts several times; give more prompts, or lower its "
            "weight."
        )
    if rollout.extra_prompts:
        extra = f" + rollout.extra_prompts {rollout.extra_prompts}"
    if num_prompts >= wanted:
        return None
    return (
        f"data.path has {num_prompts} prompts and rollout.prompts_per_step is {rollout.prompts_per_step}{extra}: each "
        f"step holds some prompts several times; give more prompts, or set rollout.prompts_per_step to {num_prompts} "
        "or less."
    )


def a_pause_in_place_is_shorter_than_the_watchdog(config: RunConfig) -> str | None:
    """SGLang's watchdog kills a server whose running requests stand still, as they do while paused in place."""
    rollout, sync = config.rollout, config.weight_sync
    if rollout.engine != "sglang" or sync.pause_mode != "in_place":
        return None
    options = {name.replace("_", "-"): value for name, value in rollout.server_arguments.items()}
    watchdog_s = options.get("watchdog-timeout", _WATCHDOG_S)
    deadline = "weight_sync.timeout_s" if sync.traits.in_buckets else "rollout.request_timeout_s"
    deadline_s = sync.timeout_s if sync.traits.in_buckets else rollout.request_timeout_s
    if not isinstance(watchdog_s, (int, float)) or deadline_s <= watchdog_s:
        return None
    return (
        f"weight_sync.pause_mode is in_place, {deadline} is {deadline_s:g} and the servers' watchdog-timeout is "
        f"{watchdog_s:g}: a server with running requests kills itself if taking weights holds it up that long; set "
        f"weight_sync.pause_mode=retract, or raise watchdog-timeout in rollout.server_arguments to {deadline_s:g}."
    )


def an_evaluation_is_due_within_the_run(config: RunConfig) -> str | None:
    """A run that is shorter than the interval evaluates nothing after its start."""
    evaluation, steps = config.evaluation, config.run.steps
    if evaluation.suite is None or evaluation.every <= steps:
        return None
    return f"evaluation.every is {evaluation.every} and run.steps is {steps}: no step is evaluated; lower the former."


ADVICE: tuple[Rule, ...] = (
    kl_cov_needs_a_second_update,
    the_sign_of_a_mismatch_is_noise,
    ratio_selects_some_tokens,
    band_needs_normalized_advantages,
    sampling_is_the_policy,
    micro_batch_scope_depends_on_the_layout,
    min_lr_needs_a_decay,
    warmup_ends,
    stale_samples_are_corrected,
    over_sampled_prompts_run_at_once,
    memory_is_in_gib,
    bucket_is_in_bytes,
    a_pause_in_place_is_shorter_than_the_watchdog,
    an_evaluation_is_due_within_the_run,
)


def config_warnings(config: RunConfig) -> list[str]:
    """Warnings about a configuration that has passed the rules, one sentence each."""
    sentences = (advise(config) for advise in ADVICE)
    return [sentence for sentence in sentences if sentence is not None]
