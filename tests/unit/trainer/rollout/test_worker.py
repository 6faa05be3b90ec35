"""Rank 0's worker with a real embedded server: batches begun ahead, their failures, and interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megacov.config import RunConfig, load_config
from megacov.errors import DataError, LeaveRequested, RewardError
from megacov.trainer.rollout.worker import Collected, RolloutWorker
from megacov.trainer.run_folder import write_config
from megacov.trainer.state import TrainState
from megacov.types import VERIFIER_FAILURES

OVERRIDES = ("rollout.prompts_per_step=4", "rollout.samples_per_prompt=2", "rollout.max_staleness=1")


def made(config: RunConfig) -> RolloutWorker:
    """A worker that has read all that it reads, and has started no server."""
    shape = json.loads((config.model.path / "config.json").read_text())
    return RolloutWorker(config, config.run.directory, vocab_size=shape["vocab_size"])


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return load_config("yaml_configs/runs/tiny_grpo.yaml", (f"run.directory={folder}", *OVERRIDES, *overrides))


@contextmanager
def opened(folder: Path, *overrides: str) -> Iterator[RolloutWorker]:
    """A worker whose server has the weights of version 3."""
    config = config_of(folder, *overrides)
    write_config(config)
    worker = made(config)
    try:
        worker.start_servers()
        worker.wait_ready()
        worker.push_weights(list(load_file(config.model.path / "model.safetensors").items()), version=3)
        yield worker
    finally:
        worker.close()


STOP_ID = 7


def test_a_batch_begun_ahead_is_collected_a_step_later(tmp_path: Path) -> None:
    by_name = ("rewards.verifier=tests.support.verifiers:sum_pairs_by_name", "rewards.max_failed_share=0.0")
    endings = (f"rollout.stop_token_ids=[{STOP_ID}]", "rollout.mask_overlong=true", "rollout.max_response_length=4")
    with opened(tmp_path, *by_name, *endings) as worker:
        worker.begin(step=4, version=3, prompt_position=8)
        collected = worker.collect(TrainState(step=4, prompt_position=8))
        assert collected.shown == list(range(8)) and list((tmp_path / "samples").iterdir()) == []
        worker.samples.write(None, step=5)
        prompts = worker._stream.moved_to(8).take(4)
        # `interrupt` gives up the batch under way and every later one.
        worker.begin(step=5, version=3, prompt_position=12)
        worker.interrupt()
        with pytest.raises(LeaveRequested):
            worker.collect(TrainState(step=5, prompt_position=12))
        worker.begin(step=5, version=3, prompt_position=12)
        with pytest.raises(LeaveRequested):
            worker.collect(TrainState(step=5, prompt_position=12))
    assert collected.prompt_position == 12
    assert {name: value for name, value in collected.metrics.items() if "verifier" in name and "_s" not in name} == {
        f"reward/verifier_{kind}": 0 for kind in ("failed", *VERIFIER_FAILURES)
    }
    assert collected.metrics["perf/verifier_call_s"] > 0
    assert all(prompt.row is not None for prompt in prompts)
    _check_endings(collected)
    assert collected.metrics["rollout/version_lag"] == collected.metrics["rollout/version_lag_max"] == 1
    lines = [json.loads(line) for line in (tmp_path / "samples" / "step_000005.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [prompt.text for prompt in prompts for _ in range(2)]
    assert all((line["versions"], line["staleness"]) == (["3"], 1) for line in lines)


def test_over_sampling_changes_no_batch_of_the_embedded_server(tmp_path: Path) -> None:
    """What a batch gives up has left the server when the next begins, and its prompts come again with other seeds."""
    odd = ("rewards.verifier=tests.support.verifiers:odd_length", "rollout.filter_groups=true")
    batches: dict[float, list[Collected]] = {1.0: [], 3.0: []}
    with opened(tmp_path, *odd, "run.deterministic=true", "rollout.over_sample=3.0") as worker:
        over_sampling = worker._sampler
        assert over_sampling.over_sample == 3.0
        for factor, collected in batches.items():
            worker._sampler, position = replace(over_sampling, over_sample=factor), 0
            for step in (3, 4):
                worker.begin(step=step, version=3, prompt_position=position)
                collected.append(worker.collect(TrainState(step=step, prompt_position=position)))
                position = collected[-1].prompt_position
    for first, second in zip(*batches.values(), strict=True):
        assert first.prompt_position == second.prompt_position
        for name in ("tokens", "rewards", "rollout_log_probs", "group_ids"):
            assert torch.equal(getattr(first.batch, name), getattr(second.batch, name)), name
        assert first.metrics["rollout/dropped_groups"] == second.metrics["rollout/dropped_groups"]
        in_vain = [
            sum(one.metrics[f"rollout/{kind}_groups"] for kind in ("aborted", "unused")) for one in (first, second)
        ]
        assert in_vain[0] == 0 < in_vain[1]


def test_an_answer_that_cannot_be_judged_against_is_named_at_the_start(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "3=", "answer": "3"}\n{"prompt": "4=", "answer": "four"}\n', encoding="ascii")
    with pytest.raises(DataError, match=r"prompts\.jsonl, .*2: sum_pairs needs .* got 'four'; correct the answer, or"):
        made(config_of(tmp_path / "run", f"data.path={prompts}"))
    assert not (tmp_path / "run").exists()


def test_fewer_prompts_than_a_step_has_are_named_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "1=", "answer": "1"}\n')
    made(config_of(tmp_path / "run", f"data.path={data}")).close()
    assert "warning: data.path has 1 prompts and rollout.prompts_per_step is 4" in capsys.readouterr().err


def _check_endings(collected: Collected) -> None:
    """A stop token ends a response and is its last loss token; responses that the limit cut carry no loss."""
    batch, limit = collected.batch, collected.batch.max_response_length
    num_stopped = num_masked = 0
    for tokens, prompt, response, mask in zip(
        batch.tokens, batch.prompt_lengths.tolist(), batch.response_lengths.tolist(), batch.loss_mask, strict=True
    ):
        ids = tokens[prompt : prompt + response].tolist()
        assert STOP_ID not in ids[:-1]
        num_stopped += ids[-1] == STOP_ID
        is_cut = response == limit  # the server looks at the length first
        num_masked += is_cut
        assert mask.tolist() == [not is_cut and place < response for place in range(len(mask))]
    assert num_stopped > 0 and num_masked > 0, "the responses show both"
    assert collected.metrics["rollout/overlong_masked"] == num_masked


def test_stop_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(DataError, match="stop_token_ids holds 16, .* vocabulary has 16 tokens")
    with refused, opened(tmp_path, "rollout.stop_token_ids=[3, 16]"):
        pass


def test_a_failure_while_sampling_is_raised_by_collect(tmp_path: Path) -> None:
    with opened(tmp_path, "rewards.verifier=tests.support.verifiers:not_a_number") as worker:
        worker.begin(step=3, version=3, prompt_position=0)
        with pytest.raises(RewardError, match="not_a_number returned nan"):
            worker.collect(TrainState(step=3))
