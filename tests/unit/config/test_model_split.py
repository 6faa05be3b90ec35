"""What each parallel size must divide, and what follows from it."""

from __future__ import annotations

import pytest

from megacov.config import check_experts, check_model, fuses_output
from megacov.errors import ConfigError

TINY = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_layers": 6, "ffn_hidden_size": 24}


@pytest.mark.parametrize(("tensor", "pipeline", "virtual"), [(1, 1, 1), (2, 3, 2), (4, 6, 1)])
def test_a_model_that_divides_is_let_through(tensor, pipeline, virtual):
    check_model(**TINY, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"tensor": 3},
            "parallel.tensor is 3 and the model has 8 attention heads, .* set parallel.tensor to 1, 2 or 4.",
        ),
        ({"tensor": 8}, "parallel.tensor is 8 and the model has 4 key-value heads, .* to 1, 2 or 4."),
        ({"tensor": 4, "ffn_hidden_size": 18}, "the model has 18 feed-forward columns, .* to 1 or 2."),
        ({"pipeline": 4}, "parallel.pipeline is 4 and the model has 6 layers, .* to 1, 2, 3 or 6."),
        (
            {"pipeline": 2, "virtual_pipeline": 2},
            "parallel.virtual_pipeline is 2 and each of 2 stages has 3 layers, .* to 1 or 3.",
        ),
        ({"pipeline": 2, "num_layers": 1}, "the model has 1 layers, .* set parallel.pipeline to 1."),
    ],
)
def test_a_model_that_does_not_divide_is_refused_with_the_sizes_that_would(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_model(**({"tensor": 1, "pipeline": 1, "virtual_pipeline": 1} | TINY | changes))


EXPERTS = {"num_experts": 6, "expert": 1, "tensor": 1, "sequence": False}


@pytest.mark.parametrize(
    "changes", [{}, {"expert": 3}, {"expert": 6, "tensor": 2, "sequence": True}, {"num_experts": None, "tensor": 2}]
)
def test_experts_that_divide_are_let_through(changes):
    check_experts(**(EXPERTS | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expert": 4}, "parallel.expert is 4 and the model has 6 experts, .* set parallel.expert to 1, 2, 3 or 6."),
        ({"num_experts": None, "expert": 2}, "parallel.expert is 2 and the model has no experts: set .* to 1."),
        ({"tensor": 2}, "parallel.tensor is 2, parallel.sequence is false .* set parallel.sequence=true."),
    ],
)
def test_experts_that_cannot_be_shared_out_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_experts(**(EXPERTS | changes))


@pytest.mark.parametrize(
    ("choice", "tensor", "expected"),
    [("auto", 1, True), ("auto", 2, True), ("auto", 4, False), ("on", 8, True), ("off", 1, False)],
)
def test_logits_are_left_whole_where_their_shards_are_small(choice, tensor, expected):
    assert fuses_output(choice, tensor=tensor) is expected
