"""What the first steps of a run say about the tokens that its ratio selected."""

from __future__ import annotations

from megacov.config import load_config
from megacov.trainer.first_steps import first_step_warning

TINY = "yaml_configs/runs/tiny_kl_cov.yaml"


def test_the_first_steps_count_the_tokens_that_there_were() -> None:
    config = load_config(TINY, ["algorithm.selection.ratio=0.007"])
    metrics = {"rollout/length_mean": 2.5, "rollout/groups": 64.0}
    warning = first_step_warning(config, metrics, step=1)
    # 64 groups of 8 responses of 2.5 tokens, in 4 mini-batches.
    assert warning is not None and warning.startswith("step 1: algorithm.selection.ratio is 0.007, which selects 2 of")
    assert (
        "of the 320 response tokens of a mini-batch" in warning and "smallest sensible ratio here is 0.016" in warning
    )
    assert first_step_warning(config, metrics, step=4) is None
    assert first_step_warning(config, metrics | {"rollout/length_mean": 8.0}, step=1) is None
    assert first_step_warning(load_config("yaml_configs/runs/tiny_grpo.yaml"), metrics, step=1) is None


def test_groups_of_several_sources_count_with_their_mean_size() -> None:
    sources = "data.sources=[{name: a, path: a, samples_per_prompt: 4}, {name: b, path: b, samples_per_prompt: 12}]"
    config = load_config(TINY, ["algorithm.selection.ratio=0.007", "data.path=null", sources])
    assert config.mean_group_size == config.rollout.samples_per_prompt == 8
    heavier = load_config(
        TINY, ["algorithm.selection.ratio=0.007", "data.path=null", f"{sources[:-2]}, weight: 3.0}}]"]
    )
    for each, tokens in ((config, 320), (heavier, 400)):
        warning = first_step_warning(each, {"rollout/length_mean": 2.5, "rollout/groups": 64.0}, step=1)
        assert f"of the {tokens} response tokens" in (warning or "")
