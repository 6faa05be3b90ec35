"""The kernels of the selection: in Triton's interpreter, as machine code for an H100, and on a GPU if there is one."""

import pytest
import torch

from megacov.ops import covariance
from megacov.ops.kernels import dispatch
from megacov.selection import select_clip_cov, select_kl_cov
from tests.support.kernel_program import run_with_triton

NAMES = [
    "equals a sort",
    "many tokens with few values",
    "scores that lie apart are left alone",
    "the covariance has the bits of torch",
    "extremes are those of torch",
    "values beyond the limits of exact sums",
    "the public functions call the kernels",
    "two ranks select as one",
]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("interpreted")
    found = run_with_triton("tests.support.selection_kernel_checks", folder, TRITON_INTERPRET="1")
    assert list(found) == NAMES
    return found


@pytest.mark.triton
@pytest.mark.parametrize("name", NAMES)
def test_in_the_interpreter(interpreted, name):
    assert interpreted[name] == ""


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv(dispatch.VARIABLE, "1")
    from tests.support.selection_kernel_checks import CHECKS

    CHECKS[name]("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["0", "1"])
def test_on_a_gpu_nothing_waits_for_the_host(kernels, monkeypatch):
    if kernels == "1":
        pytest.importorskip("triton")
    monkeypatch.setenv(dispatch.VARIABLE, kernels)
    log_probs = torch.randn(1 << 20, device="cuda")
    advantages = torch.randn(1 << 20, device="cuda") * 3
    kept_mask = log_probs > -2
    token_ids = torch.arange(1 << 20, device="cuda")

    def select() -> list[torch.Tensor]:
        cov = covariance(log_probs, advantages, kept_mask, group=None)
        bounds = {"ratio": 1e-3, "lower": 1.0, "upper": 5.0, "seed": 3, "update": 2, "group": None}
        return [
            select_kl_cov(cov, kept_mask, token_ids, ratio=2e-4, group=None),
            select_clip_cov(cov, kept_mask, kept_mask, token_ids, **bounds),
        ]

    expected = select()  # the first call compiles and loads, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = select()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.triton
def test_the_machine_code_fits_into_registers(tmp_path):
    found = run_with_triton("tests.support.selection_kernel_builds", tmp_path)
    assert len(found) == 10
    assert {variant: facts["spilled_bytes"] for variant, facts in found.items()} == dict.fromkeys(found, 0)
