"""Comparison of runs whose curves, and so whose crossings, are known exactly."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from megacov.errors import DataError
from megacov.monitor.compare import entropy_ratio, find_crossing, group_runs, read_run, smooth, summarise
from megacov.monitor.compare_figure import SIZE_INCHES, write_figure
from megacov.monitor.compare_law import GroupLaw, fit_group
from megacov.monitor.compare_table import render_table
from megacov.monitor.figure_style import DOTS_PER_INCH
from megacov.monitor.tensorboard import MetricWriter

TARGET = 0.75
STEPS = np.arange(64)
# Straight lines, exact in float32, which a centred mean does not change. Reward 0.75 is at step 24 and at 48.
FAST, SLOW = STEPS / 32, STEPS / 64
FALLING, FALLING_SLOWLY = 3 - STEPS / 32, 6 - STEPS / 32


@pytest.fixture
def groups(make_run):
    """At reward 0.75 grpo has entropy 2.25 (two seeds, 2.0 and 2.5) and kl_cov 4.5; one run never reaches it."""
    folders = [
        make_run("grpo_seed2", FAST, FALLING + 0.25, seed=2),
        make_run("grpo_seed1", FAST, FALLING - 0.25, seed=1),
        make_run("kl_cov", SLOW, FALLING_SLOWLY, loss="kl_cov"),
        make_run("stuck", 0 * FAST, FALLING, loss="clip_cov"),
    ]
    return group_runs(read_run(folder) for folder in folders)


def laws_of(groups) -> list[GroupLaw]:
    return [fit_group(group) for group in groups]


def test_smoothing_is_a_centred_mean_over_what_is_there():
    assert smooth(np.array([0.0, 10.0, 20.0, 60.0, 0.0, 90.0])).tolist() == [10.0, 22.5, 18.0, 36.0, 42.5, 50.0]
    assert smooth(np.array([3.0])).tolist() == [3.0]
    assert smooth(np.array([3.0, 5.0])).tolist() == [4.0, 4.0]


def test_seeds_are_grouped_by_name(groups):
    assert [[run.name for run in group] for group in groups] == [["grpo_seed1", "grpo_seed2"], ["kl_cov"], ["stuck"]]
    assert [(group[0].label, group[0].loss) for group in groups[:2]] == [("grpo", "ppo_clip"), ("kl_cov", "kl_cov")]


def test_runs_of_one_label_but_different_losses_stay_apart(make_run):
    folders = [make_run("a/b_seed1", FAST, FALLING), make_run("a/b_seed2", FAST, FALLING, loss="kl_cov")]
    assert len(group_runs(read_run(folder) for folder in folders)) == 2


def test_curves_are_read_as_they_were_written(groups):
    (kl_cov,) = groups[1]
    assert kl_cov.steps.tolist() == STEPS.tolist()
    assert kl_cov.rewards.tolist() == SLOW.tolist()
    assert kl_cov.entropies.tolist() == FALLING_SLOWLY.tolist()


def test_crossings(groups):
    (grpo, _), (kl_cov,), (stuck,) = groups
    assert (find_crossing(grpo, TARGET).step, find_crossing(grpo, TARGET).entropy) == (24, pytest.approx(2.0))
    assert (find_crossing(kl_cov, TARGET).step, find_crossing(kl_cov, TARGET).entropy) == (48, pytest.approx(4.5))
    assert find_crossing(stuck, TARGET) is None


def test_summaries_and_the_known_ratio(groups):
    grpo, kl_cov, stuck = (summarise(group, TARGET) for group in groups)
    assert (grpo.first_entropy, grpo.last_entropy) == (3.0, 33 / 32)
    assert grpo.fall_factor == pytest.approx(96 / 33)
    assert (grpo.first_reward, grpo.last_reward) == (0.0, 63 / 32)
    assert (grpo.num_steps, grpo.num_runs, grpo.num_reached, grpo.crossing_step) == (64, 2, 2, 24)
    assert grpo.entropy_at_reward == pytest.approx(2.25)
    assert entropy_ratio(kl_cov, grpo) == pytest.approx(2.0)
    assert entropy_ratio(grpo, grpo) == pytest.approx(1.0)
    assert stuck.entropy_at_reward is None
    assert entropy_ratio(stuck, grpo) is None
    assert entropy_ratio(grpo, stuck) is None


def test_the_mean_at_equal_reward_is_over_the_seeds_that_got_there(make_run):
    folders = [make_run("a_seed1", FAST, FALLING), make_run("a_seed2", 0 * FAST, FALLING, seed=2)]
    (group,) = group_runs(read_run(folder) for folder in folders)
    summary = summarise(group, TARGET)
    assert (summary.num_reached, summary.num_runs) == (1, 2)
    assert summary.entropy_at_reward == pytest.approx(2.25)
    assert "2.250 (1 of 2)" in render([group], group)


def render(groups, baseline_group) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(render_table(groups, baseline_group=baseline_group, reward=TARGET))
    return console.export_text()


def test_the_table(groups):
    lines = [" ".join(line.split()) for line in render(groups, groups[0]).splitlines()]
    assert "grpo (2 seeds) 64 0.00 to 1.97 3.000 to 1.031 2.9x 2.250 24 1.00x" in lines
    assert "seed 1 64 0.00 to 1.97 2.750 to 0.781 3.5x 2.000 24 0.89x" in lines
    assert "kl_cov 64 0.00 to 0.98 6.000 to 4.031 1.5x 4.500 48 2.00x" in lines
    assert "stuck 64 0.00 to 0.00 3.000 to 1.031 2.9x not reached - -" in lines
    assert "averaged over 5 logged steps (centred)" in " ".join(lines)


def test_the_picture_has_its_size_and_a_colour_for_each_group(groups, tmp_path):
    path = tmp_path / "new" / "compare.png"
    write_figure(groups, laws_of(groups), reward=TARGET, path=path)
    image = Image.open(path).convert("RGB")
    assert image.size == tuple(round(inches * DOTS_PER_INCH) for inches in SIZE_INCHES)
    colours = {colour: count for count, colour in image.getcolors(maxcolors=image.width * image.height)}
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert colours.get(colour, 0) > 1000


def test_the_picture_of_a_single_step_can_be_drawn(make_run, tmp_path):
    groups = [[read_run(make_run("a", [0.5], [1.0]))]]
    write_figure(groups, laws_of(groups), reward=TARGET, path=tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 0


def test_seeds_of_different_length_are_averaged_where_all_have_steps(make_run, tmp_path):
    folders = [make_run("a_seed1", FAST, FALLING), make_run("a_seed2", FAST[:9], FALLING[:9], seed=2, first_step=70)]
    (group,) = group_runs(read_run(folder) for folder in folders)
    write_figure([group], laws_of([group]), reward=TARGET, path=tmp_path / "apart.png")
    assert (tmp_path / "apart.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "reason"), [("compare.jpg", r"let it end in \.png"), ("file/compare.png", "--output")]
)
def test_a_picture_that_cannot_be_written_is_one_sentence(name, reason, groups, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=reason):
        write_figure(groups, laws_of(groups), reward=TARGET, path=tmp_path / name)


def test_of_a_step_logged_twice_the_later_counts_and_non_finite_steps_do_not(make_run):
    folder = make_run("a", [0.0, 0.25, 0.5, float("nan")], [4.0, 3.0, 2.0, 1.0])
    with MetricWriter(folder / "tensorboard", first_step=4) as writer:
        writer.write_scalars({"reward/mean": 0.75, "entropy/token_mean": 1.5}, step=2)
        writer.write_scalars({"reward/mean": 0.75}, step=4)  # without its entropy
    run = read_run(folder)
    assert run.steps.tolist() == [0, 1, 2]
    assert run.rewards.tolist() == [0.0, 0.25, 0.75]
    assert run.entropies.tolist() == [4.0, 3.0, 1.5]


def test_folders_that_are_no_runs_are_one_sentence(make_run, tmp_path):
    with pytest.raises(DataError, match="missing is not a folder"):
        read_run(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no config\.yaml"):
        read_run(tmp_path / "empty")
    folder = make_run("no_events", [], [])
    with pytest.raises(DataError, match="no step with both reward/mean and entropy/token_mean"):
        read_run(folder)
    for file in (folder / "tensorboard").iterdir():
        file.write_bytes(b"no event" * 100)
    with pytest.raises(DataError, match="is damaged: the 800 bytes from byte 0 on do not count"):
        read_run(folder)
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="has no TensorBoard events"):
        read_run(folder)
    for text in (
        "run: {name: a, seed: 1}",
        "just words",
        "",
        "a: [",
        yaml.safe_dump({"run": {"name": "a", "seed": "x"}}),
    ):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=r"config\.yaml does not hold run\.name, run\.seed"):
            read_run(folder)
