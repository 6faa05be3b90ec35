"""How a model may be distributed over ranks: what each parallel size must divide."""

from __future__ import annotations

from math import gcd

from megacov.errors import ConfigError


def fuses_output(choice: str, *, tensor: int) -> bool:
    """Whether passes without gradient go from hidden states to log-probs without whole logits.

    Args:
        choice: `model.fused_output`: "auto", "on" or "off".
        tensor: tensor-parallel size. `auto` leaves the logits of more than two ranks whole, whose shards are small.

    Returns:
        The same on all ranks.
    """
    return choice == "on" or (choice == "auto" and tensor <= 2)


def check_model(
    *,
    num_attention_heads: int,
    num_key_value_heads: int,
    num_layers: int,
    ffn_hidden_size: int,
    tensor: int,
    pipeline: int,
    virtual_pipeline: int,
) -> None:
    """Check that a model can be split over tensor- and pipeline-parallel ranks.

    Args:
        num_attention_heads: number of query heads of a layer.
        num_key_value_heads: number of key heads of a layer, which is also that of value heads.
        num_layers: number of layers of the model.
        ffn_hidden_size: width of the feed-forward layer.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        virtual_pipeline: number of runs of layers on each pipeline rank.

    Raises:
        ConfigError: a parallel size does not divide a size of the model.
    """
    split_by_tensor = {
        "attention heads": num_attention_heads,
        "key-value heads": num_key_value_heads,
        "feed-forward columns": ffn_hidden_size,
    }
    for what, size in split_by_tensor.items():
        if size % tensor != 0:
            fitting = divisors(gcd(*split_by_tensor.values()))
            raise ConfigError(
                f"parallel.tensor is {tensor} and the model has {size} {what}, which it does not divide: set "
                f"parallel.tensor to {choices(fitting)}."
            )
    if num_layers % pipeline != 0:
        raise ConfigError(
            f"parallel.pipeline is {pipeline} and the model has {num_layers} layers, which it does not divide: set "
            f"parallel.pipeline to {choices(divisors(num_layers))}."
        )
    if num_layers % (pipeline * virtual_pipeline) != 0:
        raise ConfigError(
            f"parallel.virtual_pipeline is {virtual_pipeline} and each of {pipeline} stages has "
            f"{num_layers // pipeline} layers, which it does not divide: set parallel.virtual_pipeline to "
            f"{choices(divisors(num_layers // pipeline))}."
        )


def check_experts(*, num_experts: int | None, expert: int, tensor: int, sequence: bool) -> None:
    """Check that the experts of a model can be distributed over expert-parallel ranks.

    Args:
        num_experts: number of experts of a layer; None in a dense model.
        expert: expert-parallel size.
        tensor: tensor-parallel size.
        sequence: whether sequence parallelism is on.

    Raises:
        ConfigError: the model has no experts, their number is not divisible, or Megatron refuses tensor parallelism.
    """
    if num_experts is None:
        if expert > 1:
            raise ConfigError(f"parallel.expert is {expert} and the model has no experts: set parallel.expert to 1.")
        return
    if num_experts % expert != 0:
        raise ConfigError(
            f"parallel.expert is {expert} and the model has {num_experts} experts, which it does not divide: set "
            f"parallel.expert to {choices(divisors(num_experts))}."
        )
    if tensor > 1 and not sequence:
        raise ConfigError(
            f"parallel.tensor is {tensor}, parallel.sequence is false and the model has experts, which Megatron trains "
            "under tensor parallelism with sequence parallelism only: set parallel.sequence=true."
        )


def divisors(number: int) -> list[int]:
    """Its divisors in order, from 1."""
    return [n for n in range(1, number + 1) if number % n == 0]


def choices(numbers: list[int]) -> str:
    """Numbers as a message offers them: "1, 2 or 4"."""
    *head, tail = map(str, numbers)
    return f"{', '.join(head)} or {tail}" if head else tail
