"""The engine generates with the model's own log-probs, whatever else runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from megacov.embedded_server import engine as engine_module
from megacov.embedded_server.model import load_model
from tests.support.embedded import EngineDriver, make_engine
from tests.support.tiny_model import EOS_ID

PROMPTS = [[5, 6, 7, 8], [9, 10], [11], [12, 13, 14, 15, 16, 17, 18, 19, 20], [9, 10, 21]]


@pytest.fixture
def driver(served) -> EngineDriver:
    return EngineDriver(make_engine(served))


@torch.inference_mode()
def plain_log_probs(model, prompt_ids: list[int], output_ids: list[int], temperature: float) -> torch.Tensor:
    """Log-probs of the output tokens by one forward pass over prompt and output, without cache or padding."""
    logits = model(input_ids=torch.tensor([prompt_ids + output_ids])).logits[0, len(prompt_ids) - 1 : -1]
    log_probs = (logits.double() / temperature).log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(output_ids).unsqueeze(1)).squeeze(1)


def run_alone(served, prompt_ids, **params):
    driver = EngineDriver(make_engine(served))
    request = driver.submit(prompt_ids, **params)
    driver.finish()
    return [(generation.output_ids, generation.log_probs) for generation in request.generations]


def assert_same(generations, expected):
    assert [generation.output_ids for generation in generations] == [ids for ids, _ in expected]
    for generation, (_, log_probs) in zip(generations, expected, strict=True):
        torch.testing.assert_close(torch.tensor(generation.log_probs), torch.tensor(log_probs), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_plain_forward_pass(served, driver, temperature):
    requests = [
        driver.submit(prompt, n=3, max_new_tokens=4 + 5 * index, temperature=temperature)
        for index, prompt in enumerate(PROMPTS)
    ]
    driver.finish()
    for request in requests:
        for generation in request.generations:
            expected = plain_log_probs(served.model, request.prompt_ids, generation.output_ids, temperature)
            torch.testing.assert_close(torch.tensor(generation.log_probs).double(), expected, atol=1e-5, rtol=0.0)


def test_log_probs_of_a_model_with_a_sliding_window(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    sliding = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config | sliding))
    served = load_model(folder, dtype="float32")
    driver = EngineDriver(make_engine(served))
    requests = [driver.submit(prompt, max_new_tokens=12) for prompt in PROMPTS]
    driver.finish()
    for request in requests:
        (generation,) = request.generations
        expected = plain_log_probs(served.model, request.prompt_ids, generation.output_ids, 1.0)
        torch.testing.assert_close(torch.tensor(generation.log_probs).double(), expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.9, "sampling_seed": 3, "n": 2}])
def test_ragged_prompts_together_give_the_same_as_alone(served, driver, params):
    requests = [driver.submit(prompt, max_new_tokens=6 + index, **params) for index, prompt in enumerate(PROMPTS)]
    driver.finish()
    for request in requests:
        alone = run_alone(served, request.prompt_ids, max_new_tokens=request.params.max_new_tokens, **params)
        assert_same(request.generations, alone)


@pytest.mark.parametrize("limit", [{}, {"max_running_sequences": 3}])
def test_requests_that_join_and_leave_do_not_change_the_others(served, limit):
    driver = EngineDriver(make_engine(served, **limit))
    requests = []
    for index, prompt in enumerate(PROMPTS * 2):
        requests.append(driver.submit(prompt, n=2, max_new_tokens=3 + 7 * (index % 3), sampling_seed=index))
        driver.step(2)
    driver.finish()
    for index, request in enumerate(requests):
        alone = run_alone(
            served, request.prompt_ids, n=2, max_new_tokens=request.params.max_new_tokens, sampling_seed=index
        )
        assert_same(request.generations, alone)


def test_a_long_prefill_is_cut_into_several(served, driver, monkeypatch):
    monkeypatch.setattr(engine_module, "_MAX_PREFILL_TOKENS", 8)
    requests = [driver.submit(prompt, n=3, max_new_tokens=5, sampling_seed=1) for prompt in PROMPTS]
    driver.finish()
    for request in requests:
        alone = run_alone(served, request.prompt_ids, n=3, max_new_tokens=5, sampling_seed=1)
        assert_same(request.generations, alone)


def test_running_sequences_stay_within_the_limit_and_copies_share_a_prefill(served):
    sizes = []
    served.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    driver = EngineDriver(make_engine(served, max_running_sequences=6))
    driver.submit(PROMPTS[0], n=4, max_new_tokens=3)
    driver.submit(PROMPTS[1], n=4, max_new_tokens=3)
    driver.finish()
    # Both prompts are prefilled once for the first 6 copies, and the second again for the last 2.
    assert sizes == [(2, 4), (6, 1), (6, 1), (1, 2), (2, 1), (2, 1)]


def test_copies_differ_and_a_seed_repeats_them(served, driver):
    first = driver.submit(PROMPTS[0], n=4, max_new_tokens=12, sampling_seed=7)
    again = driver.submit(PROMPTS[0], n=4, max_new_tokens=12, sampling_seed=7)
    other = driver.submit(PROMPTS[0], n=4, max_new_tokens=12, sampling_seed=8)
    driver.finish()
    outputs = [[generation.output_ids for generation in request.generations] for request in (first, again, other)]
    assert len({tuple(ids) for ids in outputs[0]}) == 4
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_the_servers_seed_repeats_requests_in_the_same_order(served):
    def outputs(seed: int) -> list[list[int]]:
        driver = EngineDriver(make_engine(served, random_seed=seed))
        requests = [driver.submit(prompt, n=2, max_new_tokens=8) for prompt in PROMPTS]
        driver.finish()
        return [generation.output_ids for request in requests for generation in request.generations]

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


def test_prompt_log_probs(served, driver):
    requests = [driver.submit(prompt, wants_input=True, n=2, max_new_tokens=2) for prompt in PROMPTS]
    nothing_new = driver.submit(PROMPTS[0], wants_input=True, max_new_tokens=0)
    driver.finish()
    for request in [*requests, nothing_new]:
        ids = request.prompt_ids
        expected = plain_log_probs(served.model, ids[:1], ids[1:], 1.0)
        torch.testing.assert_close(torch.tensor(request.input_log_probs).double(), expected, atol=1e-5, rtol=0.0)
    assert nothing_new.generations[0].output_ids == []
    assert nothing_new.generations[0].finish.kind == "length"


def test_a_stop_token_ends_and_stays(served, driver):
    (tokens, _), *_ = run_alone(served, PROMPTS[0], max_new_tokens=20, temperature=0.0)
    stop = tokens[4]
    place = tokens.index(stop)
    request = driver.submit(PROMPTS[0], max_new_tokens=20, temperature=0.0, stop_ids=frozenset({stop, EOS_ID}))
    driver.finish()
    (generation,) = request.generations
    assert generation.output_ids == tokens[: place + 1]
    assert (generation.finish.kind, generation.finish.matched) == ("stop", stop)


def test_a_stop_string_may_span_tokens(served, driver):
    (tokens, _), *_ = run_alone(served, PROMPTS[3], max_new_tokens=20, temperature=0.0)
    text = served.tokenizer.decode(tokens[3:6])
    request = driver.submit(PROMPTS[3], max_new_tokens=20, temperature=0.0, stop=("nothing like it", text))
    driver.finish()
    (generation,) = request.generations
    assert text in served.tokenizer.decode(generation.output_ids)
    assert text not in served.tokenizer.decode(generation.output_ids[:-1])
    assert (generation.finish.kind, generation.finish.matched) == ("stop", text)


def test_the_length_counts_before_a_stop_token(served, driver):
    (tokens, _), *_ = run_alone(served, PROMPTS[0], max_new_tokens=3, temperature=0.0)
    request = driver.submit(
        PROMPTS[0], max_new_tokens=3, temperature=0.0, stop_ids=frozenset({tokens[-1]} - set(tokens[:-1]))
    )
    driver.finish()
    assert request.generations[0].finish.kind == "length"


def test_logits_that_are_not_finite_end_the_request_and_not_the_server(served, driver):
    head = served.model.lm_head.weight
    before = head.detach().clone()
    head.data.fill_(torch.nan)
    broken = driver.submit(PROMPTS[0], n=2, max_new_tokens=5)
    driver.finish()
    assert {generation.finish.status_code for generation in broken.generations} == {500}
    assert all(
        "not finite under weight version default" in generation.finish.message for generation in broken.generations
    )
    head.data.copy_(before)
    request = driver.submit(PROMPTS[0], max_new_tokens=5)
    driver.finish()
    assert request.generations[0].finish.kind == "length"
