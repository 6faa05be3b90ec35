"""Both passes over a shard in kernels, against float64: the loops for a CPU, and Triton's kernels.

Triton's run in its interpreter, and on a GPU if there is one; their machine code for an H100 is looked at.
"""

import builtins
import importlib.util

import pytest
import torch

from megacov.ops import vocab_parallel_log_probs_and_entropy
from megacov.ops.kernels import dispatch
from tests.support.kernel_checks import BLOCK, CHECKS
from tests.support.kernel_program import run_with_triton


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("interpreted")
    found = run_with_triton("tests.support.kernel_checks", folder, TRITON_INTERPRET="1")
    assert list(found) == list(CHECKS)
    return found


@pytest.mark.triton
@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(interpreted, name):
    assert interpreted[name] == ""


@pytest.mark.parametrize("name", CHECKS)
def test_in_loops_on_a_cpu(name, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    CHECKS[name]("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    CHECKS[name]("cuda")


@pytest.mark.triton
def test_the_machine_code_reads_each_logit_once_and_writes_it_once(tmp_path):
    """The interpreter rounds and compares otherwise than a GPU: these are the GPU's instructions."""
    found = run_with_triton("tests.support.kernel_builds", tmp_path)
    assert len(found) == 12
    for variant, facts in found.items():
        kernel, dtype, is_full = variant.split()
        elements = BLOCK // (8 * 32)  # of a thread
        places = 2 if kernel == "forward" else 1  # whole blocks in a loop, and what is left of the row
        assert facts["wide_loads"] * 16 == places * elements * (4 if dtype == "fp32" else 2), variant
        assert facts["wide_stores"] == (facts["wide_loads"] if kernel == "backward" else 0), variant
        assert facts["nan_maxima"] == places * elements, "a logit that is NaN would become a small one"
        assert facts["roundings"] == (["rn"] if kernel == "backward" and dtype != "fp32" else []), variant
        # 2,048 threads of a multiprocessor share 65,536 registers.
        assert facts["registers"] <= 64 and facts["spilled_bytes"] == 0, variant
        # While an H200 reads a bfloat16 logit (4.8 TB/s), it executes 12.4 instructions (132 multiprocessors with 128
        # lanes at 1.755 GHz), and an H100 (3.35 TB/s) 17.7. A backward moves two logits.
        limit = 24.7 if kernel == "backward" else 17.7 if is_full == "True" else 12.4
        assert facts["instructions"] <= limit * elements, variant


def test_loops_run_where_they_are_asked_for_and_torch_has_one_thread(monkeypatch):
    logits = torch.randn(3, 8)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert dispatch.row_kernels(logits) is None
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    assert dispatch.loops_take(logits) and not dispatch.takes(logits)
    assert not dispatch.loops_take(logits.half())
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert dispatch.row_kernels(logits) is None
    finally:
        torch.set_num_threads(num_threads)


def test_loops_do_not_depend_on_torch_s_defaults(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    logits, targets = torch.randn(3, 50), torch.tensor([1, 2, 3])
    expected = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None, temperature=0.6)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = vocab_parallel_log_probs_and_entropy(logits, targets, tp_group=None, temperature=0.6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


def test_without_numba_the_torch_path_runs_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def fails(name: str, *arguments: object) -> object:
        if name == "numba":
            raise ImportError("Numba needs another NumPy")
        return original(name, *arguments)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", fails)
    dispatch._has_numba.cache_clear()
    try:
        assert dispatch.row_kernels(torch.randn(3, 8)) is None
    finally:
        dispatch._has_numba.cache_clear()
    assert "numba cannot be imported (Numba needs another NumPy): torch computes" in caplog.text


def test_without_triton_the_torch_path_runs(monkeypatch):
    if importlib.util.find_spec("triton") is not None:
        pytest.skip("Triton is installed beside torch here")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not dispatch.takes(torch.randn(3, 8))
