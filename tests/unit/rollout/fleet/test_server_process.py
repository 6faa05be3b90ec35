"""The embedded server as a process: it starts, serves, takes new weights and ends; a failed start has a reason."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacov.errors import ConfigError, RolloutError
from megacov.rollout import EmbeddedServer, GenerateRequest, PartialRollouts, PromptSampler, RolloutClient, Sampler
from megacov.rollout.fleet.keys import make_keys
from megacov.types import Prompt
from megacov.weight_sync import DiskTransport
from tests.support.command import run
from tests.support.judging import judged_by
from tests.support.processes import is_running, wait_until

ROOT = Path(__file__).parents[4]
PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(model_folder, log_path=tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


def client_of(server: EmbeddedServer) -> RolloutClient:
    return RolloutClient(server.address, vocab_size=32, request_timeout_s=30.0)


def plain_log_probs(folder: Path, token_ids: tuple[int, ...], temperature: float) -> torch.Tensor:
    """Log-probs of all tokens after the prompt, by one forward pass of transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, len(PROMPT) - 1 : -1]
    targets = torch.tensor(token_ids[len(PROMPT) :]).unsqueeze(1)
    return (logits.double() / temperature).log_softmax(-1).gather(-1, targets).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completions_carry_the_models_log_probs(server, model_folder, temperature):
    async def run():
        async with client_of(server) as client:
            return await client.generate(
                GenerateRequest(input_ids=PROMPT, n=3, max_new_tokens=12, temperature=temperature)
            )

    completions = asyncio.run(run())
    assert len({completion.token_ids for completion in completions}) == 3
    for completion in completions:
        expected = plain_log_probs(model_folder, PROMPT + completion.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(completion.log_probs).double(), expected, atol=1e-5, rtol=0.0)


def test_a_whole_step_of_sampling_and_new_weights(server, model_folder, other_folder, tmp_path):
    prompts = [Prompt(index, "", (3 + index, 4), "") for index in range(8)]
    batches = []
    with asyncio.Runner() as runner:
        client = client_of(server)
        sampler = Sampler(
            PromptSampler(
                clients=[client],
                verify=judged_by(lambda text, _: float(len(text))),
                samples_per_prompt=4,
                max_response_length=6,
            )
        )
        transport = DiskTransport([client], run=runner.run, source_model=model_folder, directory=tmp_path / "weights")
        # Each call has the same seed, so the samples depend on the weights alone.
        for version, folder in ((1, model_folder), (2, other_folder), (3, model_folder)):
            transport.push(version, load_file(folder / "model.safetensors").items())
            batches.append(runner.run(sampler.sample_groups(prompts, 8, expected_version=str(version), seed=4)))
        runner.run(client.aclose())
    tokens = [[sample.completion.token_ids for sample in batch.samples] for batch in batches]
    assert len(tokens[0]) == 32
    assert tokens[0] == tokens[2]
    assert tokens[0] != tokens[1]


def test_unfinished_completions_continue_from_their_last_token(server, model_folder, tmp_path):
    weights = load_file(model_folder / "model.safetensors")
    decode = AutoTokenizer.from_pretrained(model_folder).decode
    source = (Prompt(index, "", (5 + index % 4, 6, 7, 8), "") for index in range(1000))
    phases, carried = [], ()
    with asyncio.Runner() as runner:
        client = client_of(server)
        prompt_sampler = PromptSampler(
            clients=[client],
            verify=judged_by(lambda text, _: float(len(text))),
            samples_per_prompt=2,
            max_response_length=50,
        )
        decode = partial(decode, skip_special_tokens=True)
        sampler = Sampler(prompt_sampler, PartialRollouts(decode=decode, max_staleness=4, extra_prompts=6))
        transport = DiskTransport([client], run=runner.run, source_model=model_folder, directory=tmp_path / "weights")
        for version in range(12):
            transport.push(version, weights.items())
            versions = {"expected_version": str(version), "trained_version": version + 1}
            phases.append(runner.run(sampler.sample_groups(source, 2, carried=carried, **versions)))
            carried = phases[-1].carried
        runner.run(client.aclose())
    samples = [sample for phase in phases for sample in phase.samples]
    indices = [sample.prompt.index for sample in samples[::2]] + [group.prompt.index for group in carried]
    assert sorted(indices) == list(range(len(indices))) and len(samples) == 12 * 2 * 2
    pieced = [sample for sample in samples if len(sample.completion.version_spans) > 1]
    assert pieced and sum(phase.report.continued_tokens for phase in phases) > 0
    for sample in pieced[:8]:
        completion = sample.completion
        expected = plain_log_probs(model_folder, sample.prompt.token_ids + completion.token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(completion.log_probs).double(), expected, atol=1e-5, rtol=0.0)
        spans = completion.version_spans
        assert [0, *(span.end for span in spans)] == [*(span.start for span in spans), len(completion.token_ids)]
        assert completion.text == decode(completion.token_ids, skip_special_tokens=True)
        assert completion.finish_reason == ("length" if len(completion.token_ids) == 50 else "stop")


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "megacov", "serve", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60.0, check=False)


def assert_one_sentence(ended: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert ended.returncode not in (0, 1)
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert all(part in ended.stderr for part in parts), ended.stderr


def test_a_port_in_use_is_named(model_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(start(model_folder, "--port", str(port)), f"Port {port} on 127.0.0.1 is in use", "choose")


def test_a_folder_that_is_no_model_is_named(model_folder, tmp_path):
    assert_one_sentence(start(tmp_path / "gone", "--port", "0"), "no model folder", "gone")
    assert_one_sentence(start(tmp_path, "--port", "0"), "has no config.json")
    shutil.copy(model_folder / "config.json", tmp_path)
    assert_one_sentence(start(tmp_path, "--port", "0"), "has no tokenizer")


def test_a_server_that_dies_at_the_start_is_reported_with_its_last_line(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    log = tmp_path / "server.log"
    with (
        pytest.raises(RolloutError, match="exit code 3; its log .*server.log ends with: megacov: .* has no tokenizer"),
        EmbeddedServer(folder, log_path=log),
    ):
        pass


def test_a_server_that_is_too_slow_is_stopped(model_folder, tmp_path):
    # A user may have deleted the folder of logs, or renamed that of the run, since the last start.
    log = tmp_path / "run" / "logs" / "server.log"
    server = EmbeddedServer(model_folder, log_path=log, start_timeout_s=0.3)
    with pytest.raises(RolloutError, match=r"did not generate within 0.3 s; raise rollout.start_timeout_s"), server:
        pass
    assert server.pid is None


def test_a_server_ends_with_its_killed_parent(model_folder, tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from megacov.rollout import EmbeddedServer\n"
        f"with EmbeddedServer(Path({str(model_folder)!r}), log_path=Path({str(tmp_path / 'log')!r})) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as output:
        pid = int(output.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(pid))


def test_the_server_ends_at_once_even_with_running_requests(model_folder, tmp_path):
    async def run(server: EmbeddedServer):
        async with client_of(server) as client:
            await client.pause("in_place")
            request = GenerateRequest(input_ids=PROMPT, n=2, max_new_tokens=12)
            waiting = asyncio.create_task(client.generate(request))
            await asyncio.sleep(0.3)
            started = time.monotonic()
            await asyncio.to_thread(server.stop)
            assert time.monotonic() - started < 2.5
            return await waiting

    server = EmbeddedServer(model_folder, log_path=tmp_path / "server.log")
    server.start()
    pid = server.pid
    assert pid is not None
    with server:
        assert server.pid == pid
        assert [completion.finish_reason for completion in asyncio.run(run(server))] == ["abort", "abort"]
        with pytest.raises(RolloutError, match="exit code 0"):
            server.check_alive()


def test_a_server_with_keys_serves_nobody_without_them(model_folder, tmp_path):
    keys = make_keys()
    with EmbeddedServer(model_folder, log_path=tmp_path / "server.log", host="0.0.0.0", keys=keys) as server:
        # The address is one to listen on; a client takes the machine's own.
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        assert not [path for path in tmp_path.iterdir() if "keys" in path.name]
        assert all(keys.api not in word for word in Path(f"/proc/{server.pid}/cmdline").read_text().split("\0"))

        async def run() -> None:
            request = GenerateRequest(input_ids=PROMPT, n=1, max_new_tokens=2)
            client = partial(RolloutClient, address, vocab_size=32, request_timeout_s=30.0)
            async with client() as nobody, client(api_key=keys.api, admin_key=keys.admin) as owner:
                with pytest.raises(RolloutError, match="401"):
                    await nobody.generate(request)
                with pytest.raises(RolloutError, match="401"):
                    await nobody.weights.load_from_disk(str(model_folder), weight_version="theirs")
                assert (await owner.generate(request))[0].token_ids
                await owner.weights.load_from_disk(str(model_folder), weight_version="1")
                assert (await owner.model_info())["weight_version"] == "1"

        asyncio.run(run())


def test_a_server_that_others_reach_does_not_start_without_a_key(model_folder, tmp_path):
    ended = run("serve", str(model_folder), "--host", "0.0.0.0", "--port", "0", log=tmp_path / "log")
    assert ended.code == ConfigError.exit_code
    assert "megacov: --host 0.0.0.0 can be reached from other machines" in ended.output
    assert "Traceback" not in ended.output
