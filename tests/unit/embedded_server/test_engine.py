"""Pauses, aborts and new weights: what happens to running and waiting requests."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from megacov.embedded_server.model import load_model
from megacov.embedded_server.weights import WeightUpdate
from tests.support.embedded import EngineDriver, make_engine
from tests.unit.embedded_server.test_generation import plain_log_probs

PROMPT = [5, 6, 7, 8]
NEW_TOKENS = 12


@pytest.fixture
def driver(served) -> EngineDriver:
    return EngineDriver(make_engine(served))


def submit(driver, prompt=PROMPT, **params):
    return driver.submit(prompt, **{"n": 2, "max_new_tokens": NEW_TOKENS, "sampling_seed": 3} | params)


def update(driver, folder: Path, version: str | None = "v1", *, flushes_cache: bool = True) -> list[tuple[bool, str]]:
    """Request an update, and append its outcome to the list."""
    outcomes: list[tuple[bool, str]] = []
    driver.engine.update_weights(
        WeightUpdate(folder, version, flushes_cache, lambda success, message: outcomes.append((success, message)))
    )
    return outcomes


def kinds(request) -> set[str]:
    return {generation.finish.kind if generation.finish else "running" for generation in request.generations}


def versions(request) -> list[list[str]]:
    return [[version for version, _ in generation.spans] for generation in request.generations]


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.8}])
def test_a_pause_alone_changes_nothing(driver, mode, params):
    undisturbed = submit(driver, **params)
    driver.finish()
    request = submit(driver, **params)
    for _ in range(4):
        driver.step(2)
        driver.engine.pause(mode)
        driver.step(5)
        driver.engine.resume()
    driver.finish()
    for generation, expected in zip(request.generations, undisturbed.generations, strict=True):
        assert generation.output_ids == expected.output_ids
        assert generation.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
        assert generation.num_retractions == (4 if mode == "retract" else 0)
        assert generation.spans == [("default", 0)]


def test_nothing_is_generated_while_paused(driver):
    request = submit(driver)
    driver.step(3)
    driver.engine.pause("in_place")
    late = submit(driver)
    driver.step(10)
    assert [len(generation.output_ids) for generation in request.generations] == [3, 3]
    assert [len(generation.output_ids) for generation in late.generations] == [0, 0]
    assert not driver.engine.has_work
    driver.engine.resume()
    driver.finish()
    assert kinds(request) == kinds(late) == {"length"}


def test_a_pause_that_aborts_answers_with_the_tokens_so_far(driver):
    running, waiting = submit(driver), submit(driver, [9])
    driver.engine.max_running_sequences = 2
    driver.step(3)
    driver.engine.pause("abort")
    assert driver.done == [running, waiting]
    assert kinds(running) == kinds(waiting) == {"abort"}
    assert [len(generation.output_ids) for generation in running.generations] == [3, 3]
    assert versions(waiting) == [["default"], ["default"]]
    assert driver.engine.flush_cache()
    late = submit(driver)
    driver.engine.resume()
    driver.finish()
    assert kinds(late) == {"length"}


def test_one_request_is_aborted_and_the_others_continue(driver):
    first, second = submit(driver), submit(driver, [9])
    driver.step(3)
    driver.engine.abort(first.rid)
    driver.engine.abort("unknown")
    driver.finish()
    assert kinds(first) == {"abort"}
    assert kinds(second) == {"length"}


def test_retracted_requests_continue_with_new_weights(driver, other_folder):
    request = submit(driver)
    driver.step(5)
    driver.engine.pause("retract")
    assert driver.engine.flush_cache()
    assert update(driver, other_folder) == [(True, "Succeeded to update model weights. Weight version updated to v1.")]
    driver.engine.resume()
    driver.finish()
    other = load_model(other_folder, dtype="float32").model
    for generation in request.generations:
        assert generation.spans == [("default", 0), ("v1", 5)]
        # The cache was recomputed, so the later tokens are exactly those of the new model.
        expected = plain_log_probs(other, PROMPT, generation.output_ids, 1.0)[5:]
        torch.testing.assert_close(torch.tensor(generation.log_probs[5:]).double(), expected, atol=1e-5, rtol=0.0)


def test_requests_paused_in_place_keep_their_cache(driver, other_folder):
    request = submit(driver)
    driver.step(5)
    driver.engine.pause("in_place")
    assert not driver.engine.flush_cache()
    (refused,) = update(driver, other_folder)
    assert refused == (False, "Requests paused in place keep their cache, so send flush_cache=false.")
    assert driver.engine.weight_version == "default"
    ((success, _),) = update(driver, other_folder, flushes_cache=False)
    assert success
    driver.engine.resume()
    driver.finish()
    other = load_model(other_folder, dtype="float32").model
    for generation in request.generations:
        assert generation.spans == [("default", 0), ("v1", 5)]
        new_model = plain_log_probs(other, PROMPT, generation.output_ids, 1.0)[5:]
        assert not torch.allclose(torch.tensor(generation.log_probs[5:]).double(), new_model, atol=1e-3)


def test_an_update_waits_for_requests_before_it_and_goes_before_later_ones(driver, other_folder):
    before = submit(driver)
    driver.step(2)
    outcomes = update(driver, other_folder)
    after = submit(driver)
    driver.step(2)
    assert outcomes == []
    assert [len(generation.output_ids) for generation in after.generations] == [0, 0]
    driver.finish()
    assert outcomes[0][0]
    assert versions(before) == [["default"], ["default"]]
    assert versions(after) == [["v1"], ["v1"]]
    assert kinds(before) == kinds(after) == {"length"}


def test_an_update_changes_what_is_generated(driver, other_folder, model_folder):
    def greedy():
        request = submit(driver, n=1, temperature=0.0)
        driver.finish()
        return request.generations[0].output_ids

    old = greedy()
    ((success, _),) = update(driver, other_folder)
    assert success and driver.engine.model_path == other_folder
    new = greedy()
    assert new != old
    update(driver, model_folder, None)
    assert greedy() == old
    assert driver.engine.weight_version == "v1"


def test_an_update_that_does_not_fit_changes_nothing(driver, tmp_path):
    request = submit(driver, temperature=0.0)
    driver.finish()
    ((success, message),) = update(driver, tmp_path)
    assert not success and "model.safetensors" in message
    again = submit(driver, temperature=0.0)
    driver.finish()
    assert again.generations[0].log_probs == request.generations[0].log_probs
    assert versions(again) == [["default"], ["default"]]


def test_an_update_lets_waiting_requests_pass_when_all_are_aborted(driver, other_folder):
    running = submit(driver)
    driver.step(2)
    outcomes = update(driver, other_folder)
    after = submit(driver)
    driver.engine.abort(None)
    driver.finish()
    assert outcomes[0][0]
    assert kinds(running) == kinds(after) == {"abort"}
    assert versions(after) == [["default"], ["default"]]


def test_requests_keep_their_parameters_when_others_leave_the_batch(driver):
    many = [{"temperature": 0.0, "max_new_tokens": 2}, {"temperature": 2.0}, {"temperature": 0.5, "top_k": 2}]
    alone = []
    for params in many:
        alone.append(submit(driver, **params))
        driver.finish()
    together = [submit(driver, **params) for params in many]
    driver.finish()
    assert [generation.output_ids for request in together for generation in request.generations] == [
        generation.output_ids for request in alone for generation in request.generations
    ]


def test_a_deterministic_engine_gives_the_same_bits_beside_any_requests(served):
    def outputs(*before: list[int]):
        driver = EngineDriver(make_engine(served, deterministic=True))
        for prompt in before:
            submit(driver, prompt, n=3, sampling_seed=9)
        request = submit(driver, temperature=0.8)
        driver.finish()
        return [(generation.output_ids, generation.log_probs) for generation in request.generations]

    assert outputs() == outputs([9, 8, 7, 6, 5, 4, 3, 2], [11]) == outputs([3] * 30)


def test_a_prompt_on_which_the_model_fails_ends_its_own_request_only(driver, served):
    def fail(_model, _args, inputs):
        if (inputs["input_ids"] == 9).any():
            raise RuntimeError("no kernel for this")

    alone = [submit(driver, prompt, temperature=0.0, max_new_tokens=6) for prompt in ([5, 6], [7, 8])]
    driver.finish()
    with contextlib.ExitStack() as stack:
        hook = served.model.register_forward_pre_hook(fail, with_kwargs=True)
        stack.callback(hook.remove)
        first, bad, last = (
            submit(driver, prompt, temperature=0.0, max_new_tokens=6) for prompt in ([5, 6], [9, 9], [7, 8])
        )
        driver.finish()
    assert bad.generations[0].finish.status_code == 500
    assert "no kernel for this" in bad.generations[0].finish.message
    for request, expected in zip((first, last), alone, strict=True):
        assert request.generations[0].output_ids == expected.generations[0].output_ids
        assert request.generations[0].finish == expected.generations[0].finish
    assert not driver.engine.has_work and driver.engine.flush_cache()


def test_a_token_on_which_the_model_fails_ends_its_own_request_only(driver, served):
    prompts = ([5, 6], [7, 8], [11, 12], [14, 3])
    alone = [submit(driver, prompt, temperature=0.0, max_new_tokens=6, n=2) for prompt in prompts]
    driver.finish()
    expected = [request.generations[0].output_ids for request in alone]
    # A token that one request makes and is fed with, and another does not.
    token = next(
        token
        for ids in expected
        for token in ids[:-1]
        if not all(token in other[:-1] for other in expected) and not any(token in prompt for prompt in prompts)
    )
    seen = []

    def fail(_model, _args, inputs):
        if (inputs["input_ids"] == token).any():
            seen.append(inputs)
            raise RuntimeError("no kernel for this")

    hook = served.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        requests = [submit(driver, prompt, temperature=0.0, max_new_tokens=6, n=2) for prompt in prompts]
        driver.finish()
    finally:
        hook.remove()
    assert seen, "the model never failed"
    for request, ids in zip(requests, expected, strict=True):
        finishes = {generation.finish.status_code for generation in request.generations}
        assert finishes == ({500} if token in ids[:-1] else {None})
        if token not in ids[:-1]:
            assert all(generation.output_ids == ids for generation in request.generations)
