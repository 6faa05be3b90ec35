"""Losses of a user: found by package.module:function, and every mistake in one is a sentence before ranks start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from megacov.config import RunConfig, load_config
from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.trainer.algorithm import build_algorithm, resolve_loss

RUN = Path(__file__).parents[3] / "yaml_configs" / "runs" / "tiny_grpo.yaml"
HEAD = """
    from typing import Literal
    import torch
    from megacov.losses import Metric, TokenLosses, policy_loss

"""
PLAIN = """
    def soft(batch, *, alpha: float = 0.5, kind: Literal["a", "b"] = "a", limit: int | None = None):
        return TokenLosses(-alpha * batch.advantages * torch.exp(batch.log_probs - batch.old_log_probs))
"""
DECLARED = """
    @policy_loss(metrics={"shift": Metric("Mean of d.", "nats")}, needs_selection=True, needs_sequence_sums=True)
    def soft(batch, *, alpha: float = 0.5):
        d = batch.log_probs - batch.old_log_probs
        return TokenLosses(-batch.advantages * d * batch.sequence_tokens, {"shift": d.detach()})
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """fn(source) -> name of a module that holds it; each test has another name, since modules stay imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"user_{abs(hash(request.node.nodeid))}"

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(dedent(HEAD) + dedent(source), encoding="ascii")
        return name

    return write


def configure(name: str, hyperparameters: str = "", *overrides: str) -> RunConfig:
    return load_config(RUN, [f"algorithm.loss={{name: '{name}'{hyperparameters}}}", *overrides])


def test_a_plain_function_is_a_loss_with_its_keywords_as_hyperparameters(write, one_token):
    config = configure(f"{write(PLAIN)}:soft", ", alpha: 0.25, kind: b")
    algorithm = build_algorithm(config)
    assert algorithm.loss_hyperparameters == {"alpha": 0.25, "kind": "b"}
    output = algorithm.loss(one_token(2.0, 3.0), **algorithm.loss_hyperparameters)
    assert output.loss.item() == pytest.approx(-0.25 * 2 * 3)
    assert not algorithm.loss.needs_selection


def test_a_declared_one_says_what_it_needs_and_logs(write, one_token):
    config = configure(f"{write(DECLARED)}:soft", "", "algorithm.selection={name: kl_cov}")
    loss = resolve_loss(config)
    assert (loss.needs_selection, loss.needs_sequence_sums, set(loss.metrics)) == (True, True, {"shift"})
    assert loss(one_token(2.0, 1.0)).metrics["shift"] == 0


def test_a_selection_must_fit_what_the_loss_declares(write):
    module = write(DECLARED)
    with pytest.raises(ConfigError, match=rf"{module}:soft acts on selected tokens, so set algorithm\.selection\.name"):
        resolve_loss(configure(f"{module}:soft"))


def test_a_selection_is_no_use_to_a_plain_one(write):
    with pytest.raises(ConfigError, match=r"treats all tokens alike, so set algorithm\.selection\.name=none"):
        resolve_loss(configure(f"{write(PLAIN)}:soft", "", "algorithm.selection={name: kl_cov}"))


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        (", alhpa: 0.1", "algorithm.loss.alhpa is not a setting: did you mean algorithm.loss.alpha?"),
        (", beta: 0.1", "algorithm.loss.beta is not a setting: remove it; algorithm.loss has alpha, kind and limit."),
        (", alpha: yes", "algorithm.loss.alpha is 'yes': it must be a number."),
        (", alpha: true", "algorithm.loss.alpha is true: it must be a number."),
        (", alpha: null", "algorithm.loss.alpha is null: it must be a number."),
        (", alpha: .nan", "algorithm.loss.alpha is nan: it must be a number."),
        (", kind: c", "algorithm.loss.kind is 'c': it must be a or b."),
        (", limit: 1.5", "algorithm.loss.limit is 1.5: it must be a whole number, or null."),
        (", limit: null, alpha: 1", None),
    ],
)
def test_hyperparameters_are_checked_like_any_setting(write, hyperparameters, message):
    config = configure(f"{write(PLAIN)}:soft", hyperparameters)
    if message is None:
        assert resolve_loss(config)
        return
    with pytest.raises(ConfigError) as caught:
        resolve_loss(config)
    assert str(caught.value) == message


RETURN = "return TokenLosses(-batch.advantages * batch.log_probs)"
MISTAKES = {
    "def other(batch): ...": "holds nothing of that name",
    "soft = 3": "holds a int",
    "class soft:\n        def __call__(self, batch): ...": "should point to a function, and is a type",
    "import no_such_package": "No module named 'no_such_package'",
    "raise RuntimeError('no licence')": "RuntimeError: no licence",
    "def soft(batch: ": "SyntaxError",
    "undefined": "NameError: name 'undefined'",
    f"def soft(): {RETURN}": r"signature \(\): it must take the batch",
    f"def soft(*, batch=None): {RETURN}": "it must take the batch",
    f"def soft(batch, alpha: float = 1.0): {RETURN}": "each hyperparameter by keyword alone, with a default",
    f"def soft(batch, *, alpha: float): {RETURN}": "with a default",
    f"def soft(batch, **rest): {RETURN}": "each hyperparameter by keyword alone",
    f"def soft(batch, *, alpha=1.0): {RETURN}": r"without a plain type \(alpha\)",
    f"def soft(batch, *, alpha: list = None): {RETURN}": r"without a plain type \(alpha\)",
    f"def soft(batch, *, alpha: int | str = 1): {RETURN}": r"without a plain type \(alpha\)",
    f"def soft(batch, *, alpha: 'Nothing' = 1): {RETURN}": "annotations of .* cannot be read .*'Nothing'",
    "def soft(batch): return TokenLosses(batch.log_probs.sum())": r"losses of shape \[\] for \[6\] tokens",
    "def soft(batch): return -batch.advantages * batch.log_probs": "returns a Tensor: return TokenLosses",
    "def soft(batch): return TokenLosses(batch.advantages * 1)": "do not depend on batch.log_probs",
    "def soft(batch): return TokenLosses(batch.log_probs / batch.missing)": "AttributeError.*missing",
    "def soft(batch): return TokenLosses(batch.log_probs * undefined)": "NameError",
    "def soft(batch): return TokenLosses(batch.log_probs * batch.sequence_log_ratio)": "TypeError",
    "def soft(batch): return TokenLosses(batch.log_probs * batch.log_probs.detach().max())": (
        r"batch of 0 tokens with \w+Error"
    ),
    "def soft(batch): return TokenLosses((batch.log_probs - batch.old_log_probs).abs().sqrt())": "not finite",
    "def soft(batch): return TokenLosses(batch.log_probs.exp().clamp_(max=0.5))": "modified by an inplace operation",
    "@policy_loss(metrics={'m': 'a sentence'})\n    def soft(batch): ...": "give each metric a name",
    "@policy_loss(metrics={'lr': Metric('Mine.', '-')})\n    def soft(batch): ...": "which every run has",
    "raise SystemExit(0)": "SystemExit: 0.*correct the module",
    "def soft(batch): return TokenLosses(3.0)": "yields a float: return tensors",
    f"def soft(batch, *, name: str = 'x'): {RETURN}": "a section cannot hold",
    f"def soft(batch, *, copy: bool = True): {RETURN}": "a section cannot hold",
    f"@policy_loss(clipped_tokens=lambda batch: 1 / 0)\n    def soft(batch): {RETURN}": "ZeroDivisionError",
    "def soft(batch): raise type('OddError', (Exception,), {})('over\\nand out')": "OddError: over and out",
    "def soft(batch): return TokenLosses(batch.log_probs, {'b': batch.advantages, 'a': batch.advantages})": (
        "yields a, b and declares no metrics: declare each metric"
    ),
    "@policy_loss(metrics={'k3': Metric('Mine.', '-')})\n    def soft(batch): ...": (
        "ConfigError: Loss soft declares k3, which every run has"
    ),
    "@policy_loss(needs_selection=True, needs_sequence_sums=True, clipped_tokens=print)\n    def soft(batch): ...": (
        "leave one of the three out"
    ),
}


@pytest.mark.parametrize("source", MISTAKES)
def test_a_mistake_is_a_sentence(write, source):
    module = write(f"    {source}\n")
    with pytest.raises(ConfigError, match=MISTAKES[source]) as caught:
        resolve_loss(configure(f"{module}:soft"))
    assert str(caught.value).startswith("algorithm.loss.name: ") or module in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b:c", "nowhere_at_all:soft", "math:pi", ":soft", "math:"])
def test_a_name_that_leads_nowhere(name):
    with pytest.raises(ConfigError, match=r"^algorithm\.loss\.name: "):
        get_loss(name)


def test_the_check_trains_nothing_and_leaves_gradients_on(write):
    resolve_loss(configure(f"{write(PLAIN)}:soft"))
    assert torch.is_grad_enabled()
