"""The scope of a selection: which tokens compete with each other, and at which moment of a step that is decided.

A step offers four moments: before the first optimizer step of a rollout batch, before each optimizer step, between the
forwards and the backwards of an optimizer step, and inside the loss of a micro-batch. A scope selects at one of them
and answers None at the others. Off the last pipeline stage every answer is None: those ranks have no log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from megacov.megatron.policy import Policy
from megacov.parallel.collectives import all_reduce_max
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.correction import gather_tokens
from megacov.trainer.optimizer_step.mini_batch import MiniBatch, all_inputs
from megacov.trainer.optimizer_step.selection import Selection, select_tokens
from megacov.trainer.optimizer_step.token_inputs import join, old_forwards


class SelectionScope:
    """No tokens are selected; a real scope overrides the method of its moment."""

    # Whether all ranks and micro-batches compete, so that threshold, margin and overlap describe one selection.
    is_global: ClassVar[bool] = True
    # Whether selection has a time of its own, apart from the forward-backward pass.
    is_timed: ClassVar[bool] = False

    def __init__(self, algorithm: Algorithm, groups: ParallelGroups) -> None:
        """Keep what every selection of the run shares."""
        self._algorithm, self._groups = algorithm, groups

    def before_batch(self, mini_batches: Sequence[MiniBatch]) -> list[Selection | None]:
        """Select before the first optimizer step of a rollout batch, from the old policy.

        Collectives: dp_cp: those of `select_tokens` on the last stage, where the scope selects here.

        Args:
            mini_batches: all of the rollout batch.

        Returns:
            One selection a mini-batch.
        """
        return [None] * len(mini_batches)

    def before_update(self, policy: Policy, mini_batch: MiniBatch, *, is_on_policy: bool) -> Selection | None:
        """Select before an optimizer step.

        Collectives: where the scope selects here, a forward-only pass of all ranks unless the log-probs are known;
        then dp_cp: those of `select_tokens` on the last stage.

        Args:
            policy: the policy that is about to be updated.
            mini_batch: the optimizer step's share of the rollout batch.
            is_on_policy: whether `policy` is still the old policy, whose log-probs are known.

        Returns:
            The selection over the mini-batch.
        """
        return None

    def kept_positions(self, mini_batch: MiniBatch, *, is_on_policy: bool) -> int | None:
        """Whether an optimizer step has to run all forwards before the first backward, and what is kept until then.

        Args:
            mini_batch: the optimizer step's share of the rollout batch; `before_batch` has seen it.
            is_on_policy: as in `before_update`.

        Returns:
            Positions whose activations are kept, on the rank that has most; 0 if the optimizer step makes a pass for
            its selection instead; None if it needs neither. The same on all ranks.
        """
        return None

    def corrects(self, mini_batch: MiniBatch, *, is_on_policy: bool) -> bool:
        """Whether an optimizer step goes forward and backward without a selection, and corrects its gradient for one.

        Args:
            mini_batch: the optimizer step's share of the rollout batch; `before_batch` has seen it.
            is_on_policy: as in `before_update`.

        Returns:
            The same on all ranks; never true where `kept_positions` is not 0.
        """
        return False

    def between_passes(
        self, mini_batch: MiniBatch, log_probs: Sequence[Tensor], entropies: Sequence[Tensor]
    ) -> Selection | None:
        """Select once all forwards of an optimizer step have run, where `kept_positions` or `corrects` ask so.

        No backward has run with `kept_positions`, and all have with `corrects`.

        This is the place for whatever a loss needs to know of the whole optimizer step under the current policy.

        Collectives: dp_cp: those of `select_tokens`, where the scope selects here.

        Args:
            mini_batch: the optimizer step's share of the rollout batch.
            log_probs: [t] float32 detached of each micro-batch, under the policy that is about to be updated.
            entropies: [t] float32 nats, likewise.

        Returns:
            The selection over the mini-batch.
        """
        return None

    def in_micro_batch(self, mini_batch: MiniBatch, index: int, log_probs: Tensor, entropy: Tensor) -> Selection | None:
        """Select inside the loss of one micro-batch, as the paper's code and verl do.

        Collectives: cp: those of `select_tokens`, where the scope selects here. The ranks that share the micro-batch
        select in it together.

        Args:
            mini_batch: the optimizer step's share of the rollout batch.
            index: place of the micro-batch in it.
            log_probs: [t] float32 detached, under the policy that is being updated.
            entropy: [t] float32 nats, likewise.

        Returns:
            The selection in this micro-batch.
        """
        return None

    def mini_batches_of(self, index: int, num_mini_batches: int) -> range:
        """Mini-batches whose tokens compete with those of one of them.

        Args:
            index: place of that one in the rollout batch.
            num_mini_batches: of the rollout batch.

        Returns:
            Their places.
        """
        return range(index, index + 1)

    def _select(
        self, mini_batches: Sequence[MiniBatch], log_probs: Sequence[Tensor], entropies: Sequence[Tensor]
    ) -> Selection | None:
        """The selection over all ranks; the number of the first optimizer step seeds random draws."""
        if not self._groups.is_last_stage:
            return None
        return select_tokens(
            all_inputs(mini_batches),
            log_probs,
            entropies,
            self._algorithm,
            update=mini_batches[0].update,
            group=self._groups.dp_cp,
        )


class RolloutBatchScope(SelectionScope):
    """All tokens of a rollout batch compete, once, while the current policy is the old one."""

    is_timed = True

    def before_batch(self, mini_batches: Sequence[MiniBatch]) -> list[Selection | None]:
        whole = self._select(mini_batches, *old_forwards(all_inputs(mini_batches)))
        if whole is None:
            return [None] * len(mini_batches)
        bounds = accumulate((len(mini_batch.inputs) for mini_batch in mini_batches), initial=0)
        return [whole.slice(start, stop) for start, stop in pairwise(bounds)]

    def mini_batches_of(self, index: int, num_mini_batches: int) -> range:
        return range(num_mini_batches)


class MiniBatchScope(SelectionScope):
    """All tokens of an optimizer step compete.

    The first optimizer step of a rollout batch reuses the old log-probs, since the current policy is the old one. Later
    ones run one forward-only pass, unless the covariance is taken of the old log-probs.
    """

    is_timed = True

    def before_update(self, policy: Policy, mini_batch: MiniBatch, *, is_on_policy: bool) -> Selection | None:
        kept = self.kept_positions(mini_batch, is_on_policy=is_on_policy)
        if kept is None:
            return self._select([mini_batch], *old_forwards(mini_batch.inputs))
        if kept > 0 or self.corrects(mini_batch, is_on_policy=is_on_policy):
            return None
        passed = policy.log_probs(mini_batch.micro_batches)
        return self._select([mini_batch], [one.log_probs for one in passed], [one.entropy for one in passed])

    def kept_positions(self, mini_batch: MiniBatch, *, is_on_policy: bool) -> int | None:
        is_known = is_on_policy and not mini_batch.tells_itself
        return None if is_known or self._algorithm.log_probs == "old" else 0


class SparingMiniBatchScope(MiniBatchScope):
    """All tokens of an optimizer step compete, by the log-probs of its own forwards: no pass is made for them alone.

    Either backwards wait for the selection, and the graphs of all micro-batches are kept until it is made; with a limit
    (`Algorithm.kept_positions`), those of optimizer steps that are within it on every rank. Or the gradient is
    corrected afterwards; with a cost (`Algorithm.correction_cost`), if that is cheaper than a pass by the share of
    positions that a correction would have had in the first optimizer step, whose selection costs nothing.
    """

    def __init__(self, algorithm: Algorithm, groups: ParallelGroups) -> None:
        """Begin a rollout batch, whose optimizer steps `before_batch` measures."""
        super().__init__(algorithm, groups)
        self._positions: dict[int, int] = {}
        self._micro_batches: dict[int, int] = {}
        self._share: float | None = None

    def before_batch(self, mini_batches: Sequence[MiniBatch]) -> list[Selection | None]:
        """Select nothing yet, but measure each optimizer step.

        Collectives: control: MAX [2, number of mini-batches] int64: positions on the rank that has most, and the number
        of micro-batches, negated, on the one that has fewest.

        Args:
            mini_batches: all of the rollout batch.

        Returns:
            None for each.
        """
        positions = [sum(part.tokens.numel() for part in mini_batch.micro_batches) for mini_batch in mini_batches]
        fewer = [-len(mini_batch.micro_batches) for mini_batch in mini_batches]
        most, fewest = all_reduce_max(torch.tensor([positions, fewer]), group=self._groups.control).tolist()
        self._positions = {mini_batch.update: most[i] for i, mini_batch in enumerate(mini_batches)}
        self._micro_batches = {mini_batch.update: -fewest[i] for i, mini_batch in enumerate(mini_batches)}
        return super().before_batch(mini_batches)

    def before_update(self, policy: Policy, mini_batch: MiniBatch, *, is_on_policy: bool) -> Selection | None:
        found = super().before_update(policy, mini_batch, is_on_policy=is_on_policy)
        has_selected = not self.kept_positions(mini_batch, is_on_policy=is_on_policy)
        if is_on_policy and has_selected and self._algorithm.corrects and self._algorithm.correction_cost is not None:
            self._share = self._share_of(mini_batch, found)
        return found

    def _share_of(self, mini_batch: MiniBatch, selection: Selection | None) -> float:
        """Share of positions in prefixes that end in a selected token. Collectives: those of `gather_tokens`."""
        token_ids = torch.empty(0, dtype=torch.int64)
        if selection is not None:
            token_ids = join(mini_batch.inputs, "token_ids")[torch.cat(selection.masks)]
        assert mini_batch.prefixes is not None
        return mini_batch.prefixes.share(gather_tokens(token_ids, token_ids[:, None], self._groups)[0])

    def kept_positions(self, mini_batch: MiniBatch, *, is_on_policy: bool) -> int | None:
        found, limit = super().kept_positions(mini_batch, is_on_policy=is_on_policy), self._algorithm.kept_positions
        positions = self._positions[mini_batch.update]
        fits = self._algorithm.defers and (limit is None or positions <= limit)
        return positions if found == 0 and fits else found

    def corrects(self, mini_batch: MiniBatch, *, is_on_policy: bool) -> bool:
        if self.kept_positions(mini_batch, is_on_policy=is_on_policy) != 0 or not self._algorithm.corrects:
            return False
        cost, number = self._algorithm.correction_cost, self._micro_batches[mini_batch.update]
        if cost is None:
            return True
        return self._share is not None and cost.is_cheaper(self._share, micro_batches=number)

    def between_passes(
        self, mini_batch: MiniBatch, log_probs: Sequence[Tensor], entropies: Sequence[Tensor]
    ) -> Selection | None:
        return self._select([mini_batch], log_probs, entropies)


class MicroBatchScope(SelectionScope):
    """The tokens of each micro-batch compete among themselves, so the result depends on the layout."""

    is_global = False

    def in_micro_batch(self, mini_batch: MiniBatch, index: int, log_probs: Tensor, entropy: Tensor) -> Selection | None:
        parts = [mini_batch.inputs[index]]
        source = old_forwards(parts) if self._algorithm.log_probs == "old" else ([log_probs], [entropy])
        update, group = mini_batch.update, self._groups.cp
        return select_tokens(parts, *source, self._algorithm, update=update, group=group, is_global=False)


_SCOPES = {"rollout_batch": RolloutBatchScope, "mini_batch": MiniBatchScope, "micro_batch": MicroBatchScope}


def make_scope(algorithm: Algorithm, groups: ParallelGroups) -> SelectionScope:
    """The scope that the algorithm names; one that never selects where the algorithm has no selection.

    Args:
        algorithm: its `select`, `scope`, `defers` and `corrects` are read here, its selector and hyperparameters at
            each selection.
        groups: this rank's process groups.

    Returns:
        The scope of one rollout batch.
    """
    if algorithm.select is None:
        return SelectionScope(algorithm, groups)
    if algorithm.scope == "mini_batch" and (algorithm.defers or algorithm.corrects):
        return SparingMiniBatchScope(algorithm, groups)
    return _SCOPES[algorithm.scope](algorithm, groups)
