"""Every mistake ends in one sentence: the dotted path, the value, and the necessary change."""

from __future__ import annotations

import pytest

from megacov.config import load_config
from megacov.config.loss_section import FUNCTION_FORM
from megacov.config.losses import LOSS_SECTIONS
from megacov.config.messages import join_names
from megacov.errors import ConfigError

LOSSES = join_names([*LOSS_SECTIONS, FUNCTION_FORM], "or")
DUAL_CLIP_LOSSES = [name for name, section in LOSS_SECTIONS.items() if "dual_clip" in section.model_fields]
LOSS_KEYS = ", ".join(dict.fromkeys(key for section in LOSS_SECTIONS.values() for key in section.model_fields))

BASE = """
run: {name: base, steps: 7}
model: {path: some/model}
data: {path: some/prompts.jsonl}
rewards: {verifier: sum_pairs}
"""

MISTAKES = {
    # unknown keys
    "run.stepz=3": "run.stepz is not a setting: did you mean run.steps?",
    "optimzer.lr=3": "optimzer is not a setting: did you mean optimizer?",
    "run.lr=3": "run.lr is not a setting: did you mean optimizer.lr?",
    "lr=3": "lr is not a setting: did you mean optimizer.lr?",
    "run.zzz=3": "run.zzz is not a setting: remove it; run has name, directory, steps, seed and deterministic.",
    "algorithm.loss={name: kl_cov, kl_cef: 1}": "algorithm.loss.kl_cef is not a setting: did you mean "
    "algorithm.loss.kl_coef?",
    "algorithm.loss={name: kl_cov, dual_clip: 3}": "algorithm.loss.dual_clip is not a setting if algorithm.loss.name "
    f"is kl_cov: remove it, or set algorithm.loss.name to {join_names(DUAL_CLIP_LOSSES, 'or')}.",
    "algorithm.selection={name: none, scope: micro_batch}": "algorithm.selection.scope is not a setting if "
    "algorithm.selection.name is none: remove it, or set algorithm.selection.name to kl_cov, clip_cov, high_entropy, "
    "m2po, bapo, steer or lp_reg.",
    # forms of a section
    "algorithm.loss.name=kl_covv": f"algorithm.loss.name is kl_covv (did you mean kl_cov?): set it to {LOSSES}.",
    "algorithm.loss.name=[x]": f"algorithm.loss.name is ['x']: set it to {LOSSES}.",
    "algorithm.loss.name=reinforce": f"algorithm.loss.name is reinforce: set it to {LOSSES}.",
    "algorithm.loss.kl_coef=3": f"algorithm.loss.name is missing: set it to {LOSSES}.",
    "algorithm.loss=kl_cov": "algorithm.loss is 'kl_cov': it must be a section with keys such as "
    f"{', '.join(LOSS_KEYS.split(', ')[:3])}.",
    "algorithm.loss={name: 'a.b:c', alpha: [1]}": "algorithm.loss: alpha is [1]: a hyperparameter is a number, true or "
    "false, text, or null.",
    "rollout=3": "rollout is 3: it must be a section with keys such as engine, addresses, addresses_file.",
    # types
    "run.steps=many": "run.steps is 'many': it must be a whole number, at least 1 [steps].",
    "run.steps=2.5": "run.steps is 2.5: it must be a whole number, at least 1 [steps].",
    "run.steps=true": "run.steps is true: it must be a whole number, at least 1 [steps].",
    "run.steps=null": "run.steps is null: it must be a whole number, at least 1 [steps].",
    "run.steps.deep=1": "run.steps is {'deep': 1}: it must be a whole number, at least 1 [steps].",
    "rollout.temperature=true": "rollout.temperature is true: it must be a number, above 0 [ratio].",
    "data.shuffle=maybe": "data.shuffle is 'maybe': it must be true or false.",
    "run.name=12": 'run.name is 12: it must be text. Quote it to make it text: "12".',
    "model.path=3": 'model.path is 3: it must be a path. Quote it to make it text: "3".',
    "rollout.stop_token_ids=[-1]": "rollout.stop_token_ids[0] is -1: it must be a whole number, at least 0.",
    "rollout.stop_token_ids=[1, end]": "rollout.stop_token_ids[1] is 'end': it must be a whole number.",
    "data={chat_template: false, chat_template_kwargs: {thinking: true}}": (
        "data: chat_template_kwargs sets thinking and chat_template is false, which does not read them: remove them, "
        "or set chat_template to true."
    ),
    "data.chat_template_kwargs={tokenize: true}": (
        "data: chat_template_kwargs sets tokenize, which megacov decides itself: remove it."
    ),
    "rollout.stop=x": "rollout.stop is 'x': it must be a list in brackets, such as [a, b].",
    "rollout.stop=[x, 1]": 'rollout.stop[1] is 1: it must be text. Quote it to make it text: "1".',
    # values
    "run.steps=0": "run.steps is 0: it must be a whole number, at least 1 [steps].",
    "run.seed=-1": "run.seed is -1: it must be a whole number, at least 0 and below 2147483648 [seed].",
    "rollout.top_p=1.5": "rollout.top_p is 1.5: it must be a number, above 0 and at most 1 [fraction].",
    "rollout.top_p=.inf": "rollout.top_p is inf: it must be a number, above 0 and at most 1 [fraction].",
    "optimizer.lr=.nan": "optimizer.lr is nan: it must be a number, above 0 [per optimizer step].",
    "optimizer.lr=.inf": "optimizer.lr is inf: it must be a number, above 0 [per optimizer step].",
    "rollout.top_k=0": "rollout.top_k is 0: set it to -1 (the whole vocabulary) or to at least 1 token.",
    "rollout.samples_per_prompt=1": "rollout.samples_per_prompt is 1: it must be a whole number, at least 2 "
    "[sequences].",
    "model.dtype=fp16": "model.dtype is 'fp16': it must be float32 or bfloat16.",
    'rewards.verifier=""': "rewards.verifier is '': it must be text that is not empty.",
    "run.name=a/b": "run.name is 'a/b': start it with a letter or digit, then use letters, digits, dots, dashes and "
    "underscores.",
    "rollout.addresses=[10.0.0.5]": "rollout.addresses is ['10.0.0.5']: '10.0.0.5' is not a URL: write it as "
    "http://HOST:PORT.",
    "rollout.addresses=[http://8.8.8.8:1]": "rollout.addresses is ['http://8.8.8.8:1']: http://8.8.8.8:1 leads to the "
    "public address 8.8.8.8 without TLS, where others can read and change what is sent: use the server's address in a "
    "private network, or https.",
    "algorithm.loss={name: ppo_clip, dual_clip: 0.5}": "algorithm.loss.dual_clip is 0.5: it must be a number, above 1 "
    "[ratio], or null.",
    # two values of one section
    "optimizer.min_lr=1": "optimizer: min_lr is 1.0 and lr is 1e-06: lower min_lr or raise lr.",
    "algorithm.aggregation_norm=5": "algorithm: aggregation_norm is 5 and aggregation is token_mean, which does not "
    "read it: remove it, or set aggregation to sequence_sum_constant_norm.",
    "algorithm={ref_kl_estimator: k2, ref_kl_max_gap: 5}": "algorithm: ref_kl_max_gap is 5.0 and ref_kl_estimator is "
    "k2, which does not read it: remove it, or set ref_kl_estimator to k3.",
    "algorithm.selection={name: bapo, upper_start: 4}": "algorithm.selection: upper_start is 4.0 and upper_end is 3.0: "
    "set the start at or below the end.",
    "algorithm.selection={name: clip_cov, lower: 5, upper: 1}": "algorithm.selection: lower is 5.0 and upper is 1.0: "
    "set lower below upper.",
    "rollout.host=0.0.0.0": "rollout.host is '0.0.0.0': anybody who reaches a rollout server can replace its weights, "
    "so it listens on one private address only: set 127.0.0.1, or the machine's address in its private network.",
    "rollout.host=8.8.8.8": "rollout.host is '8.8.8.8': anybody who reaches a rollout server can replace its weights, "
    "so it listens on one private address only: set 127.0.0.1, or the machine's address in its private network.",
    "weight_sync.host=fd00::1": "weight_sync.host is 'fd00::1': SGLang joins a group by IPv4 only: give an IPv4 "
    "address.",
    "rollout.host=node7": "rollout.host is 'node7': give an IP address, such as 127.0.0.1, or localhost.",
    "rollout.server_environment.X=[3]": "rollout.server_environment.X is [3]: it must be a mapping of names to single "
    "values, such as {a: b}.",
    "rollout.server_arguments.dtype=float16": "rollout.server_arguments: megacov sets the "
    "server option dtype itself: set model.dtype instead.",
    "rollout.server_arguments.api_key=x": "rollout.server_arguments: megacov sets the server "
    "option api-key itself: leave it out.",
    "rollout.server_arguments.--device=cpu": "rollout.server_arguments: write the option without its dashes: device.",
}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_ends_in_one_sentence(base, override):
    with pytest.raises(ConfigError) as caught:
        load_config(base, [override])
    assert str(caught.value) == MISTAKES[override]


def test_a_missing_setting_says_what_it_must_be(base):
    base.write_text("run: {steps: 3}\nmodel: {path: m}\ndata: {path: d}\nrewards: {verifier: v}")
    with pytest.raises(ConfigError, match=r"^run.name is missing: add it; it must be text.$"):
        load_config(base)
    base.write_text("run: {name: a, steps: 3}\nmodel: {path: m}\nrewards: {verifier: v}")
    with pytest.raises(ConfigError, match=r"^data is missing: add it; it must be a section with keys such as path,"):
        load_config(base)


def test_a_misspelling_is_told_before_what_it_leaves_out_and_the_others_are_listed(base):
    base.write_text("run: {nam: a, steps: 0}\nmodel: {path: m}\ndata: {path: d}\nrewards: {verifier: v}")
    with pytest.raises(ConfigError) as caught:
        load_config(base, ["rollout.top_p=2"])
    assert str(caught.value) == (
        "run.nam is not a setting: did you mean run.name? Also wrong: run.name, run.steps and rollout.top_p."
    )


def test_a_long_value_is_cut(base):
    with pytest.raises(ConfigError) as caught:
        load_config(base, [f"run.steps={'x' * 500}"])
    assert len(str(caught.value)) < 150
