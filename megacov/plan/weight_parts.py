"""Where every Hugging Face tensor lies on the trainer's ranks and in an SGLang server, by the names of both.

The trainer's side repeats `megacov.megatron.families`, whose layouts are functions of torch tensors, as intervals of
plain numbers; a test compares the two. The servers' side follows SGLang 0.5.23: `srt/layers/linear.py` (fused queries,
keys and values; gate and up), `vocab_parallel_embedding.py` (padding) and `moe/fused_moe_triton/layer.py` (experts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megacov.errors import ConfigError
from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.parameters import vocab_rows

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""SGLang's names of the two vocabulary matrices."""

_VOCAB_MULTIPLE = 64  # of SGLang's padded vocabulary
_SHARES_TIED_HEAD = ("llama", "mistral", "qwen2", "qwen3")  # SGLang's Qwen3-MoE has a head of its own, tied or not


@dataclass(frozen=True)
class ServerLayout:
    """The rollout servers.

    number: number of servers.
    tensor: ranks of one server, over which it splits its layers.
    expert: groups of these ranks that hold different experts; the ranks of a group split each expert.
    """

    number: int
    tensor: int
    expert: int = 1

    @property
    def ranks(self) -> int:
        """Ranks of all servers."""
        return self.number * self.tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring rows (or columns) of a whole tensor that one rank holds.

    holder: tensor- or expert-parallel rank of the trainer, or rank of a server; None if every rank holds them.
    start, stop: the rows in the whole tensor.
    at: the first of them in the rank's own tensor.
    """

    holder: int | None
    start: int
    stop: int
    at: int = 0


@dataclass(frozen=True)
class Part:
    """A Hugging Face tensor on both sides.

    source: the first of Megatron's names for the parameter that it is part of.
    target: SGLang's name of the parameter.
    sources, targets: who holds what.
    width: number of columns, or of rows if these are split; None for a vector.
    by_columns: whether spans are of columns.
    is_expert: whether the trainer's holders are expert-parallel ranks, not tensor-parallel ones.
    slot: place of the expert in the server's parameter, which stacks experts; None for other tensors.
    """

    source: str
    target: str
    sources: tuple[Span, ...]
    targets: tuple[Span, ...]
    width: int | None
    by_columns: bool = False
    is_expert: bool = False
    slot: int | None = None


def server_vocab_rows(vocab_size: int, tensor: int) -> int:
    """Rows of the vocabulary on one rank of an SGLang server.

    SGLang pads the vocabulary to a multiple of 64, and only if its ranks cannot share that, to one of 64 for each rank.

    Args:
        vocab_size: rows of the model.
        tensor: ranks of the server.

    Returns:
        The rows, padding included.
    """
    padded = -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    if padded % tensor:
        padded = -(-vocab_size // (_VOCAB_MULTIPLE * tensor)) * _VOCAB_MULTIPLE * tensor
    return padded // tensor


def check_servers(sizes: ModelSizes, servers: ServerLayout) -> None:
    """Refuse servers that SGLang would not start.

    Args:
        sizes: sizes of the model.
        servers: the servers.

    Raises:
        ConfigError: a number of ranks does not divide a size of the model.
    """
    tensor, expert = servers.tensor, servers.expert
    heads, keys = sizes.num_attention_heads, sizes.num_key_value_heads
    if heads % tensor or max(keys, tensor) % min(keys, tensor):
        raise ConfigError(
            f"rollout.server_arguments.tp-size is {tensor} and the model has {heads} attention heads and {keys} "
            "key and value heads, which SGLang cannot split over so many GPUs: choose a divisor of both."
        )
    if tensor % expert:
        raise ConfigError(
            f"rollout.server_arguments.ep-size is {expert} and tp-size {tensor}, which it does not divide: choose a "
            "divisor of it."
        )
    if sizes.num_experts:
        members = tensor // expert
        split = {"experts": (sizes.num_experts, expert), "columns of an expert": (sizes.expert_hidden_size, members)}
    else:
        split = {"feed-forward columns": (sizes.ffn_hidden_size, tensor)}
    for what, (size, ranks) in split.items():
        if size % ranks:
            raise ConfigError(
                f"rollout.server_arguments let {ranks} GPUs of a server share {size} {what}, which SGLang cannot split "
                "over so many: change tp-size or ep-size."
            )


@dataclass(frozen=True)
class WeightTable:
    """All tensors of a model.

    sizes: sizes of the model, which both layouts divide evenly.
    vocab_divisible_by: number of which the rows of the trainer's vocabulary shards are a multiple.
    """

    sizes: ModelSizes
    trainer: Layout
    servers: ServerLayout
    vocab_divisible_by: int

    def before_layers(self) -> Iterator[Part]:
        """Yield the parts that the first pipeline stage holds beside its layers."""
        yield self._vocabulary(EMBEDDING)
        if self.sizes.tie_word_embeddings and self.sizes.family not in _SHARES_TIED_HEAD:
            yield self._vocabulary(HEAD)

    def after_layers(self) -> Iterator[Part]:
        """Yield the parts that the last pipeline stage holds beside its layers."""
        yield self._norm("decoder.final_layernorm.weight", "model.norm.weight")
        if not self.sizes.tie_word_embeddings:
            yield replace(self._vocabulary(HEAD), source="output_layer.weight")

    def layer(self) -> Iterator[Part]:
        """Yield the parts of any layer, by the names that follow its number; those of one parameter are neighbours."""
        sizes = self.sizes
        h, d = sizes.hidden_size, sizes.head_dim
        yield self._norm("input_layernorm.weight", "input_layernorm.weight")
        yield from self._qkv("weight", h)
        if sizes.has_qkv_bias:
            yield from self._qkv("bias", None)
        if sizes.has_qk_norm:
            for x in "qk":
                yield self._replicated(f"self_attention.{x}_layernorm.weight", f"self_attn.{x}_norm.weight", d, None)
        yield self._by_columns("self_attention.linear_proj.weight", "self_attn.o_proj.weight", sizes.query_size)
        yield self._norm("pre_mlp_layernorm.weight", "post_attention_layernorm.weight")
        if sizes.num_experts:
            yield self._replicated("mlp.router.weight", "mlp.gate.weight", sizes.num_experts, h)
            for expert in range(sizes.num_experts):
                yield from self._expert(expert)
            return
        f = sizes.ffn_hidden_size
        source, target = _even(f, self.trainer.tensor), _even(f, self.servers.tensor)
        for half in (0, 1):  # gate, then up
            yield Part("mlp.linear_fc1.weight", "mlp.gate_up_proj.weight", _half(source, half), _half(target, half), h)
        yield self._by_columns("mlp.linear_fc2.weight", "mlp.down_proj.weight", f)

    def _vocabulary(self, target: str) -> Part:
        """Rows of the vocabulary, which both sides pad, each to a number of its own."""
        size, tensor, ranks = self.sizes.vocab_size, self.trainer.tensor, self.servers.tensor
        rows = vocab_rows(self.sizes, tensor=tensor, vocab_divisible_by=self.vocab_divisible_by)
        # Padded rows are no part of the model: none is sent, though the trainer may hold them.
        sources, targets = _of_rows(size, rows, tensor), _of_rows(size, server_vocab_rows(size, ranks), ranks)
        return Part("embedding.word_embeddings.weight", target, sources, targets, self.sizes.hidden_size)

    def _norm(self, source: str, target: str) -> Part:
        """A norm over hidden channels, which every rank holds."""
        return self._replicated(source, target, self.sizes.hidden_size, None)

    def _replicated(self, source: str, target: str, rows: int, width: int | None) -> Part:
        targets = tuple(Span(rank, 0, rows) for rank in range(self.servers.tensor))
        return Part(source, target, (Span(None, 0, rows),), targets, width)

    def _by_columns(self, source: str, target: str, columns: int) -> Part:
        """A matrix whose input is split."""
        spans = (_even(columns, self.trainer.tensor), _even(columns, self.servers.tensor))
        return Part(source, target, *spans, self.sizes.hidden_size, by_columns=True)

    def _qkv(self, kind: str, width: int | None) -> Iterator[Part]:
        """Queries, keys and values: interleaved by key head on the trainer, one after another on a server."""
        d, keys = self.sizes.head_dim, self.sizes.num_key_value_heads
        per_key, tensor = self.sizes.num_attention_heads // keys, self.servers.tensor
        queries = self.sizes.num_attention_heads // tensor
        # More ranks than key heads: neighbours hold copies of one.
        own = max(1, keys // tensor)
        at_source, at_target = (0, per_key, per_key + 1), (0, queries, queries + own)
        for which in range(3):
            each = (per_key, 1, 1)[which]
            sources = tuple(
                Span(tp, g * each * d, (g + 1) * each * d, (own_group * (per_key + 2) + at_source[which]) * d)
                for g in range(keys)
                for tp, own_group in [divmod(g, keys // self.trainer.tensor)]
            )
            targets = tuple(
                Span(rank, start * d, (start + count) * d, at_target[which] * d)
                for rank in range(tensor)
                for start, count in [(rank * queries, queries) if which == 0 else (rank * keys // tensor, own)]
            )
            names = (f"self_attention.linear_qkv.{kind}", f"self_attn.qkv_proj.{kind}")
            yield Part(*names, sources, targets, width)

    def _expert(self, expert: int) -> Iterator[Part]:
        """An expert: whole on one expert-parallel rank of the trainer, split over a group of a server's ranks."""
        sizes, servers = self.sizes, self.servers
        h, f = sizes.hidden_size, sizes.expert_hidden_size
        holder = expert // (sizes.num_experts // self.trainer.expert)
        group, slot = divmod(expert, sizes.num_experts // servers.expert)
        members = servers.tensor // servers.expert
        whole = (Span(holder, 0, f),)
        shares = _even(f, members, first_holder=group * members)
        source = f"mlp.experts.local_experts.{expert}.linear_fc"
        for half in (0, 1):
            spans = (_half(whole, half), _half(shares, half))
            yield Part(f"{source}1.weight", "mlp.experts.w13_weight", *spans, h, is_expert=True, slot=slot)
        names = (f"{source}2.weight", "mlp.experts.w2_weight")
        yield Part(*names, whole, shares, h, by_columns=True, is_expert=True, slot=slot)


def _even(size: int, holders: int, *, first_holder: int = 0) -> tuple[Span, ...]:
    """Equal shares of a dimension, one for each holder."""
    each = size // holders
    return tuple(Span(first_holder + i, i * each, (i + 1) * each) for i in range(holders))


def _of_rows(size: int, each: int, holders: int) -> tuple[Span, ...]:
    """Shares of `each` rows, as far as there are so many."""
    return tuple(Span(i, min(i * each, size), min((i + 1) * each, size)) for i in range(holders))


def _half(spans: tuple[Span, ...], half: int) -> tuple[Span, ...]:
    """The same shares in a tensor that stacks two of them on each holder: in the upper half, or in the lower."""
    return tuple(replace(span, at=span.at + half * (span.stop - span.start)) for span in spans)
