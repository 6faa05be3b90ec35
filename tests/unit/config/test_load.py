"""Loading: extends, overrides, unions that change their form, and the way back to YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.config import RunConfig, dump_config, load, load_config, make_config, write_override
from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError

BASE = """
run: {name: base, steps: 7}
model: {path: some/model}
data: {path: some/prompts.jsonl}
rewards: {verifier: sum_pairs}
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_not_set_has_the_defaults_of_the_paper(base):
    config = load_config(base)
    assert config.rollout.temperature == config.rollout.top_p == 1
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (256, 8)
    assert (config.optimizer.lr, config.optimizer.clip_grad) == (1e-6, 1.0)
    assert config.algorithm.loss.name == "ppo_clip"
    assert (config.algorithm.loss.clip_low, config.algorithm.loss.clip_high) == (0.2, 0.2)
    assert config.run.directory == Path("runs/base")
    assert config.sequences_per_update == 256


def test_the_directory_follows_the_name_until_it_is_set(base):
    assert load_config(base, ["run.name=other"]).run.directory == Path("runs/other")
    assert load_config(base, ["run.name=other", "run.directory=elsewhere"]).run.directory == Path("elsewhere")


def test_overrides_win_over_files_and_later_ones_over_earlier_ones(base):
    config = load_config(base, ["run.steps=9", "optimizer.lr=3e-4", "run.steps=11"])
    assert (config.run.steps, config.optimizer.lr) == (11, 3e-4)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer", "lr", 3e-4),
        ("optimizer.lr=3E-4", "optimizer", "lr", 3e-4),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("rollout.stop=[a, b]", "rollout", "stop", ("a", "b")),
        ("rollout.stop=[a,b]", "rollout", "stop", ("a", "b")),
        ('rollout.stop=["\\n", "1"]', "rollout", "stop", ("\n", "1")),
        ("data.shuffle=false", "data", "shuffle", False),
        ("monitor.progress=on", "monitor", "progress", "on"),
        ("model.transformer_engine=off", "model", "transformer_engine", "off"),
        ("weight_sync.directory=null", "weight_sync", "directory", None),
        ("weight_sync.directory=a/b=c", "weight_sync", "directory", Path("a/b=c")),
        ("rewards.verifier=my.module:judge", "rewards", "verifier", "my.module:judge"),
        ("run.seed=010", "run", "seed", 10),
        (" run.seed = 4", "run", "seed", 4),
    ],
)
def test_an_override_is_read_as_yaml(base, override, section, key, value):
    found = getattr(getattr(load_config(base, [override]), section), key)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_a_file_wins_over_what_it_extends_and_later_parents_over_earlier_ones(base, tmp_path):
    write(tmp_path, "parts/a.yaml", "optimizer: {lr: 1e-3, eps: 1e-6}\nrollout: {stop: [x, y]}")
    write(tmp_path, "parts/b.yaml", "optimizer: {lr: 2e-3, beta1: 0.5}")
    run = write(tmp_path, "runs/run.yaml", "extends: [../base.yaml, ../parts/a.yaml, ../parts/b.yaml]\nrun: {steps: 3}")
    leaf = write(tmp_path, "runs/leaf.yaml", "extends: run.yaml\nrollout: {stop: [z]}")
    config = load_config(leaf)
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.beta1) == (2e-3, 1e-6, 0.5)
    assert (config.run.steps, config.run.name) == (3, "base")
    assert config.rollout.stop == ("z",), "lists are replaced"
    assert load_config(run).rollout.stop == ("x", "y")


def test_two_ways_to_one_parent_are_no_circle(base, tmp_path):
    write(tmp_path, "a.yaml", "extends: base.yaml")
    write(tmp_path, "b.yaml", "extends: base.yaml\nrun: {steps: 8}")
    assert load_config(write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]")).run.steps == 8


def test_a_circle_is_named(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml")
    write(tmp_path, "b.yaml", "extends: ./a.yaml")
    with pytest.raises(ConfigError, match=r"in a circle: \S*a.yaml -> \S*b.yaml -> \S*a.yaml; remove one"):
        load_config(tmp_path / "a.yaml")


def test_another_name_replaces_a_loss_and_the_same_name_adds_to_it(base, tmp_path):
    kl_cov = "algorithm: {loss: {name: kl_cov, kl_coef: 5}, selection: {name: kl_cov, ratio: 2e-3}}"
    parent = write(tmp_path, "kl_cov.yaml", f"extends: base.yaml\n{kl_cov}")
    config = load_config(parent, ["algorithm.loss.estimator=k3"])
    assert config.algorithm.loss.hyperparameters() == {"kl_coef": 5, "estimator": "k3"}
    config = load_config(parent, ["algorithm.loss.clip_high=0.3", "algorithm.loss.name=clip_cov"])
    assert config.algorithm.loss.hyperparameters() == {"clip_low": 1, "clip_high": 0.3, "dual_clip": None}
    config = load_config(parent, ["algorithm.loss.name=ppo_clip", "algorithm.selection.name=none"])
    assert config.algorithm.selection.hyperparameters() == {}
    assert config.algorithm.selection.scope == "mini_batch"


def test_the_name_of_a_run_does_not_replace_its_section(base):
    assert load_config(base, ["run.name=other"]).run.steps == 7


def test_a_section_whose_keys_are_commented_out_says_nothing(base):
    base.write_text(BASE + "optimizer:\n  # lr: 1e-3\n")
    assert load_config(base).optimizer.lr == 1e-6


def test_a_configuration_cannot_be_changed(base):
    config = load_config(base)
    with pytest.raises(ValueError, match="frozen"):
        config.run.steps = 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty: it must hold sections, such as run and model."),
        ("[run, model]", r"holds \['run', 'model'\]: it must hold sections"),
        ("run: {steps: 3", "line|expected"),
        ("run:\n  steps: 3\n  steps: 4", "line 3: the key 'steps' occurs twice; correct the YAML there."),
        ("run: 1\nrun: 2", "line 2: the key 'run' occurs twice"),
        ("3: {steps: 3}", "the key 3 is not text"),
        ("extends: 3", "extends is 3, but it must be the path of a file or a list of paths."),
        ("extends: gone.yaml", r"x.yaml extends \S*gone.yaml, which cannot be read \(No such file or directory\)"),
        ("\x01", "special characters are not allowed"),
        ("run: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: *gone", "found undefined alias"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, sentence):
    path = write(tmp_path, "x.yaml", text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(path)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"the configuration file \S*gone.yaml cannot be read \(No such file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "value",
    ["a: b #1", "- a", "1e-5", "true", "~", "\U0001f600", "a\x85b\u2028c", "x y " * 50 + "z", "...", "a\n...", "{a"],
)
def test_a_written_override_is_read_as_the_same_value(base, value):
    assert load_config(base, [write_override("data.answer_field", value)]).data.answer_field == value
    assert load_config(base, [write_override("rollout.stop", [value, "b"])]).rollout.stop == (value, "b")
    assert load_config(base, [write_override("optimizer.lr", 1e-5)]).optimizer.lr == 1e-5


@pytest.mark.parametrize("override", ["run.steps", "=3", "run..steps=3", ".run=3", "run.steps=[3", "run.steps=@3"])
def test_an_override_that_cannot_be_read_is_named(base, override):
    with pytest.raises(ConfigError, match="the override '") as caught:
        load_config(base, [override])
    assert repr(override) in str(caught.value)
    assert "\n" not in str(caught.value)


LOSSES = st.sampled_from(
    [
        ({"name": "ppo_clip", "clip_high": 0.28, "dual_clip": 3.0}, {"name": "none"}),
        ({"name": "clip_cov"}, {"name": "clip_cov", "lower": -0.5, "upper": 1e-7}),
        ({"name": "kl_cov", "estimator": "k2"}, {"name": "kl_cov", "scope": "rollout_batch", "log_probs": "old"}),
        ({"name": "kl_cov"}, {"name": "high_entropy", "ratio": 0.2}),
    ]
)


@given(
    stop=st.lists(st.text(max_size=8), max_size=3),
    field=st.text(min_size=1, max_size=12),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**31 - 1),
    algorithm=LOSSES,
)
def test_a_dumped_configuration_loads_to_the_same(tmp_path_factory, stop, field, lr, seed, algorithm):
    values = parse_yaml(BASE, source="base")
    values["rollout"] = {"stop": stop, "addresses": ["http://127.0.0.1:1"], "engine": "sglang"}
    values["optimizer"] = {"lr": lr}
    values["run"]["seed"] = seed
    values["data"]["answer_field"] = field
    values["algorithm"] = {"loss": algorithm[0], "selection": algorithm[1]}
    config = make_config(values)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_dump_spells_out_every_setting(base):
    dumped = parse_yaml(dump_config(load_config(base)), source="dump")
    assert set(dumped) == set(RunConfig.model_fields)
    assert dumped["optimizer"]["lr"] == 1e-6
    assert dumped["algorithm"]["loss"] == {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


def test_a_file_that_many_extend_is_read_once(base, tmp_path, monkeypatch):
    for level in range(19):
        write(tmp_path, f"{level}.yaml", f"extends: [{level + 1}.yaml, {level + 1}.yaml]\nrun: {{seed: {level}}}")
    write(tmp_path, "19.yaml", "extends: base.yaml")
    read = []
    reader = load.read_yaml
    monkeypatch.setattr(load, "read_yaml", lambda path, *, source: read.append(path) or reader(path, source=source))
    assert load_config(tmp_path / "1.yaml").run.seed == 1
    assert len(read) == 20
    with pytest.raises(ConfigError, match="extends more than 20 files in a row"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (".".join("a" * 3000) + "=1", "does not have the form"),
        ('model.path="a\\0b"', "model.path is 'a.x00b': it must not hold a NUL character"),
        ('extends="a\\0b"', "extends"),
        ("x" * 100_000 + "=1", "is not a setting"),
    ],
)
def test_an_odd_override_is_one_short_sentence(base, override, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(base, [override])
    assert len(str(caught.value)) < 2000
