"""What is reported of single tokens, against a plain loop over samples and positions in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megacov.advantages import group_relative
from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import MicroBatchSettings
from megacov.megatron.logits_reader import TokenStatistics
from megacov.megatron.policy import UpdateResult
from megacov.monitor.breakdown_tags import ACCURACY_CLASSES, POSITION_CLASSES
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.optimizer_step.mini_batch import (
    MiniBatch,
    all_micro_batches,
    plan_mini_batches,
    with_token_inputs,
)
from megacov.trainer.optimizer_step.selection import Selection
from megacov.trainer.optimizer_step.token_report import TOKEN_VALUES, TokenReport, report_tokens
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.types import RolloutBatch
from tests.support.policies import make_rollout_batch

VOCABULARY, LEFT_OUT = 16, 2
SHOWN = [0, 3, 4, 5, 6, 9, 12, 15]  # 3 is empty, 6 carries no loss, 9 is in the optimizer step that was left out


def _batch() -> RolloutBatch:
    batch = make_rollout_batch()
    rewards = torch.tensor([0.0] * 4 + [1, 0, 0, 0] + [1, 1, 1, 0] + [1.0] * 4)
    return replace(batch, rewards=rewards - torch.linspace(0, 0.5, 16), verdicts=rewards)


def _trained(batch: RolloutBatch) -> tuple[list[MiniBatch], list[UpdateOutcome], list[dict[str, Any]]]:
    """Mini-batches with random statistics, one of them left out; and each response token by itself."""
    generator = torch.Generator().manual_seed(3)
    settings = MicroBatchSettings(tokens=30, layout=SequenceLayout(packed=True))
    planned = plan_mini_batches(batch, settings, num_updates=4, first_update=8)
    statistics = []
    for part in all_micro_batches(planned):
        lp, entropy = -torch.rand(2, len(part.token_ids), generator=generator)
        statistics.append(TokenStatistics(lp, -entropy, -entropy))
    advantages = group_relative(batch.rewards, batch.group_ids, normalize_std=True)
    mini_batches, outcomes, tokens = [], [], []
    device = torch.device("cpu")
    given = with_token_inputs(planned, batch, statistics, None, advantages=advantages, device=device)
    for place, one in enumerate(given):
        inputs = [
            replace(part, kept_mask=part.loss_mask & (torch.rand(len(part.loss_mask), generator=generator) < 0.8))
            for part in one.inputs
        ]
        masks = [part.kept_mask & (torch.rand(len(part.kept_mask), generator=generator) < 0.3) for part in inputs]
        norm = math.nan if place == LEFT_OUT else 1.0
        mini_batches.append(replace(one, inputs=inputs))
        outcomes.append(UpdateOutcome(UpdateResult(norm, 1e-3, []), Selection(masks, [], [], [])))
        for part, mask in zip(inputs, masks, strict=True):
            tokens += [
                {
                    "sample": int(part.sample_index[i]),
                    "position": int(part.token_ids[i]) % batch.max_response_length,
                    "log_probs": float(part.old_log_probs[i]),
                    "entropy": float(part.entropy[i]),
                    "advantage": float(part.advantages[i]),
                    "loss": bool(part.loss_mask[i]),
                    "kept": bool(part.kept_mask[i]),
                    "selected": bool(mask[i]) and place != LEFT_OUT,
                }
                for i in range(len(mask))
            ]
    return mini_batches, outcomes, _with_covariance(tokens, batch)


def _with_covariance(tokens: list[dict[str, Any]], batch: RolloutBatch) -> list[dict[str, Any]]:
    kept = [token for token in tokens if token["kept"]]
    means = {name: math.fsum(token[name] for token in kept) / len(kept) for name in ("log_probs", "advantage")}
    for token in tokens:
        row, place = token["sample"], token["position"]
        product = (token["log_probs"] - means["log_probs"]) * (token["advantage"] - means["advantage"])
        token["covariance"] = product if token["kept"] else math.nan
        token["mismatch"] = float(batch.rollout_log_probs[row, place]) - token["log_probs"]
        token["token"] = int(batch.tokens[row, batch.prompt_lengths[row] + place])
        token["accuracy"] = [0, 1, 3, 5][row // 4]
    return tokens


@pytest.fixture(scope="module")
def found() -> tuple[TokenReport, list[dict[str, Any]], RolloutBatch]:
    torch.set_num_threads(1)
    batch = _batch()
    mini_batches, outcomes, tokens = _trained(batch)
    report = report_tokens(mini_batches, outcomes, batch, ParallelGroups(), shown=SHOWN, vocab_size=VOCABULARY)
    return report, tokens, batch


def test_values_of_shown_samples_are_in_the_order_of_their_tokens(found) -> None:
    report, tokens, batch = found
    assert report.values is not None
    expected = [
        [next(t for t in tokens if (t["sample"], t["position"]) == (row, place))[name] for row in SHOWN
         for place in range(int(batch.response_lengths[row]))]
        for name in TOKEN_VALUES
    ]  # fmt: skip
    torch.testing.assert_close(
        report.values.double(), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-5, atol=1e-6
    )
    assert report.values[2].isnan().any() and report.values[4].any() and not report.values[5].all()


@pytest.mark.parametrize(
    ("section", "names", "key"),
    [("cov_by_accuracy", [*ACCURACY_CLASSES], "accuracy"), ("cov_by_position", [*POSITION_CLASSES], "position")],
)
def test_metrics_are_means_over_each_class(found, section: str, names: list[str], key: str) -> None:
    report, tokens, _ = found
    expected = {}
    in_loss = [token for token in tokens if token["loss"]]
    for place, name in enumerate(names):
        # All positions of this batch are in the first class.
        own = [token for token in in_loss if (token[key] if key == "accuracy" else 0) == place]
        kept = [token for token in own if token["kept"]]
        expected[f"{section}/tokens_{name}"] = len(own) / len(in_loss)
        if own:
            expected[f"{section}/entropy_{name}"] = math.fsum(token["entropy"] for token in own) / len(own)
            expected[f"{section}/covariance_{name}"] = math.fsum(token["covariance"] for token in kept) / len(kept)
            expected[f"{section}/selected_{name}"] = sum(token["selected"] for token in kept) / len(kept)
    assert {tag: value for tag, value in report.metrics.items() if tag.startswith(section)} == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )
    assert sum(f"entropy_{name}" in tag for name in names for tag in expected) == (4 if key == "accuracy" else 1)


def test_sums_by_token_of_the_vocabulary(found) -> None:
    report, tokens, _ = found
    assert report.vocabulary is not None
    for token in range(VOCABULARY):
        own = [each for each in tokens if each["token"] == token and each["loss"]]
        kept = [each for each in own if each["kept"]]
        sums = report.vocabulary
        assert (sums.tokens[token], sums.kept[token]) == (len(own), len(kept))
        assert sums.selected[token] == sum(each["selected"] for each in kept)
        assert float(sums.entropy[token]) == pytest.approx(math.fsum(each["entropy"] for each in own), rel=1e-12)
        assert float(sums.covariance[token]) == pytest.approx(
            math.fsum(each["covariance"] for each in kept), rel=1e-5, abs=1e-6
        )
    assert report.vocabulary.tokens.sum() == sum(token["loss"] for token in tokens) > 40


def test_only_what_is_asked_for_is_made() -> None:
    batch = _batch()
    mini_batches, outcomes, _ = _trained(batch)
    plain = report_tokens(mini_batches, [replace(one, selection=None) for one in outcomes], batch, ParallelGroups())
    assert plain.values is None and plain.vocabulary is None
    assert not any("/selected_" in tag for tag in plain.metrics) and "cov_by_accuracy/entropy_000" in plain.metrics
