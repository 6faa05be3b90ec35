"""The prose of docs/metrics.md: facts that the tags of a section share."""

from __future__ import annotations

HEAD = """\
Every tag that a run may write to `RUN/tensorboard`; writing another one is an error. Rank 0 writes them.

"Mean over" is the denominator: *tokens*, *sequences* (responses) or *groups* (responses to one prompt) of the whole
step, over all optimizer steps, micro-batches and ranks; *none* marks sums, extremes and settings. Loss tokens are all
response tokens of the batch that is trained on. Kept tokens are the loss tokens that the high-entropy mask and the
rollout correction leave in. An optimizer step is applied unless its gradient is not finite. A tag is absent where its
value has no meaning in the run, as PPO's clip fraction has none under KL-Cov, or is not finite.

A run of several sources of prompts (data.sources) also writes `reward/mean_SOURCE`, `rollout/length_mean_SOURCE` and
`rollout/share_SOURCE`, the share of the groups trained on that are of that source. Like `reward/mean` and
`rollout/length_mean`, the first counts dropped groups and the second does not.

A resumed run moves the points of the steps that it repeats to `RUN/tensorboard/events.out.removed.*`, which TensorBoard
does not read, so each step is shown once. Until it is restarted, a TensorBoard that was open meanwhile may keep such
points of tags that are not logged again. [compare.md](compare.md) describes how megacov itself reads event files.

TensorBoard's page "Custom Scalars" shows the most important tags in sections: entropy, reward and the ceiling of the
entropy law with its interval; covariance and selection; updates; responses; the servers against the trainer;
evaluation; speed; health. Evaluations are a run of their own there, so leave `RUN/tensorboard/evaluation` checked."""

SECTIONS = {
    "run": "The task of the run.",
    "entropy": """\
Entropy of the policy over the whole vocabulary before the first optimizer step. Except for `token_mean_before_filter`
it is computed by the trainer, over loss tokens. With `algorithm.old_log_probs: rollout` entropy and covariance are
those before each token's own optimizer step.""",
    "cov": """\
`(log_prob - mean log_prob) * (advantage - mean advantage)` of each kept token, under the policy before the first
optimizer step; both means are over the kept tokens of the rollout batch.

If a tabular softmax policy takes a natural-gradient step with exact advantages, an expected covariance above 0 means
that its entropy falls (arXiv 2505.22617, Theorem 2). The gradient step that a run takes only tends to do the same: in
random cases the signs agree about four times in five. The same holds for the quadrants: `pos_adv_high_lp` and
`neg_adv_low_lp` tend to sharpen the policy, the other two to flatten it.""",
    "cov_by_accuracy": """\
Where covariance, entropy and selection are: loss tokens by the share of right responses in their group, as the verifier
judged them. Where rewards are not just 0 and 1, it is the mean reward of the group, placed between the lowest reward of
the batch (or 0, if that is lower) and the highest (or 1, if that is higher). Covariance is over kept tokens. A token
counts as selected in any applied optimizer step.""",
    "cov_by_position": """\
As `cov_by_accuracy`, by the place of the token in its response.""",
    "cov_by_token": """\
As `cov_by_accuracy`, by the string of the token, every `monitor.token_table_every` steps. `RUN/tokens.jsonl` holds the
same. [samples.md](samples.md) explains the columns.""",
    "selection": """\
The kept tokens that the covariance method acts on. Except for the quadrants and `uninformative`, these tags are of the
last applied optimizer step; in `rollout_batch` scope they are of all optimizer steps, applied or not. A score is what
the selection ranks by, such as the covariance within its own scope.""",
    "policy": """\
The optimizer steps. `d = log_prob - old log_prob`, where old is the policy before the first optimizer step. d is taken
in the forward pass of each optimizer step, so it is 0 until one has been applied. Means over tokens are over the kept
tokens of all applied optimizer steps. [losses.md](losses.md) lists the metrics of each loss.""",
    "reward": """\
All responses of the groups that are trained on or dropped by filtering. Groups carried to a later step count there.""",
    "rollout": """\
How the batch was sampled. Lengths, truncation and version lag are of the responses that are trained on.
`m = rollout log_prob - old log_prob`, by the server that sampled the token and by the trainer; means of m and of the
importance weight are over loss tokens. With `algorithm.old_log_probs: rollout` the trainer's are those of the first
optimizer step's own forwards, and m is of its tokens alone.""",
    "curriculum": """\
Only with `data.curriculum`. Running accuracy of prompts and the band, as they were when the step's batch began.""",
    "perf": """\
One step: the wall-clock time of rank 0, and the memory of all ranks. `weight_sync_*` splits up the last successful push
before the batch was complete.""",
    "health": "Failures that the run survived.",
}
