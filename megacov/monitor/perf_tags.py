"""Tags of the time and memory that a step takes."""

from __future__ import annotations

from megacov.monitor.tag import Tag

PERF_TAGS = (
    Tag("perf/step_s", "The whole step, except saving a checkpoint and writing logs.", "s", "none"),
    Tag("perf/rollout_s", "Waiting for the samples and rewards, and handing them to all ranks.", "s", "none"),
    Tag("perf/verifier_wait_s", "Mean time that a response waited for a free process.", "s", "sequences"),
    Tag("perf/verifier_call_s", "Mean time that the verifier took for a response.", "s", "sequences"),
    Tag(
        "perf/log_probs_s",
        "Forward-only passes (old log-probs, entropy, reference), advantages, token weights.",
        "s",
        "none",
    ),
    Tag(
        "perf/selection_s",
        "Covariance and selection with their forward-only passes. In micro_batch scope part of update_s.",
        "s",
        "none",
    ),
    Tag(
        "perf/selection_deferred",
        "Share of the later optimizer steps that selected by the log-probs of their own forwards, whose backwards "
        "waited; the others corrected their gradients or made another pass.",
        "fraction",
        "none",
    ),
    Tag(
        "perf/selection_corrected",
        "Share of the later optimizer steps that went forward and backward without a selection, and then corrected "
        "their gradients for one.",
        "fraction",
        "none",
    ),
    Tag(
        "perf/selection_correction_share",
        "Positions of the second forward-backward pass over those of the optimizer step, without padding; mean over "
        "the optimizer steps that corrected. Three times it, four with recomputation, in forward passes.",
        "fraction",
        "none",
    ),
    Tag(
        "perf/selection_kept_positions",
        "Most positions of any rank whose activations waited for the selection of an optimizer step.",
        "positions",
        "none",
    ),
    Tag("perf/update_s", "Forward-backward passes and optimizer steps.", "s", "none"),
    Tag("perf/weight_sync_s", "Pushing weights to the servers, every attempt included.", "s", "none"),
    Tag("perf/weight_sync_pause_s", "Last push: until all servers have paused and are ready for weights.", "s", "none"),
    Tag("perf/weight_sync_gather_s", "Last push: assembling whole tensors from the shards of all ranks.", "s", "none"),
    Tag("perf/weight_sync_transfer_s", "Last push: writing the weights to disk, or sending them.", "s", "none"),
    Tag(
        "perf/weight_sync_load_s",
        "Last push: servers loading the weights; through the disk, reading them too.",
        "s",
        "none",
    ),
    Tag("perf/weight_sync_flush_s", "Last push: flushing caches, naming and checking weights, resuming.", "s", "none"),
    Tag("perf/weight_sync_num_bytes", "Last push: size of all tensors, each counted once.", "bytes", "none"),
    Tag("perf/save_s", "How long a periodic save held up training; in the next logged step.", "s", "none"),
    Tag("perf/metrics_s", "Computing the metrics of the trainer.", "s", "none"),
    Tag("perf/tokens_per_s", "Prompt and response tokens of the batch over perf/step_s.", "tokens/s", "none"),
    Tag("perf/tokens_per_s_per_rank", "perf/tokens_per_s over the number of ranks.", "tokens/s", "none"),
    Tag(
        "perf/memory_bytes",
        "Largest over the ranks. GPU: peak of the memory that torch has allocated in this step. CPU: peak of the "
        "process's resident memory in this step, or so far where Linux does not let a process reset it.",
        "bytes",
        "none",
    ),
)
