"""What the comparison of a controller with constants counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.controller_runs import Course, best_constant, rows


def course(setting: str, entropies: list[float], rewards: list[float], *, acts_on: str = "") -> Course:
    return Course(setting, acts_on, 0.5 if acts_on else 0.0, np.array(entropies), np.array(rewards))


def test_a_constant_counts_only_while_its_entropy_is_near_the_target() -> None:
    # Near 0.5 in the last ten steps alone, at a reward of 0.6; its reward of 1 comes at another entropy.
    passing = course("constant_a", [2.0] * 20 + [0.5] * 10, [1.0] * 20 + [0.6] * 10)
    staying = course("constant_b", [0.52] * 30, [0.5] * 30)
    assert best_constant([passing, staying], 0.5) == (pytest.approx(0.6), "constant_a")
    assert best_constant([staying, passing], 0.5) == (pytest.approx(0.6), "constant_a")
    # A setting counts only if each of its seeds comes near.
    never = course("constant_a", [1.0] * 30, [1.0] * 30)
    assert best_constant([passing, never, staying], 0.5) == (pytest.approx(0.5), "constant_b")
    reward, name = best_constant([never], 0.5)
    assert math.isnan(reward) and name == "-"


def test_the_last_half_of_a_phase_counts_against_the_best_constant() -> None:
    constant = course("constant_b", [0.5] * 40, [0.8] * 40)
    # 0.46 on average over the last half: each tenth step is out of the band, no mean of ten steps is.
    held = ([0.47] * 9 + [0.37]) * 2
    controlled = course("kl_coef_0.5", [1.5] * 20 + held, [0.0] * 20 + [0.76] * 20, acts_on="kl_coef")
    (row,) = rows([controlled], [constant])
    assert row == ["kl_coef", "0.5", "0.460", "-8%", "8%", "90%", "100%", "0.760", "0.800 (b)", "0.95"]
    (row,) = rows([controlled], [])
    assert row[-2:] == ["none", "-"]
