"""hash_64 is splitmix64, looks uniform, and depends only on seed, update and token id."""

import pytest
import torch

from megacov.parallel import hash_64

_WORD = 2**64 - 1


def _splitmix64_output(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)


def test_the_reference_is_splitmix64():
    # First outputs for seed 1234567, as published with the generator's reference code.
    outputs = [_splitmix64_output((1234567 + n * 0x9E3779B97F4A7C15) & _WORD) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("seed", "update"), [(0, 0), (1, 0), (0, 1), (42, 10**6), (-1, 3), (2**63, 2**64 + 5)])
def test_equals_integer_arithmetic_in_64_bit_words(seed, update):
    token_ids = torch.tensor([0, 1, 2, 2**31, 2**40 + 7, 2**63 - 1, -1, -(2**63)])
    key = _splitmix64_output((_splitmix64_output(seed & _WORD) + update) & _WORD)
    expected = [
        _splitmix64_output((key + token_id * 0x9E3779B97F4A7C15) & _WORD) & (2**63 - 1)
        for token_id in token_ids.tolist()
    ]
    assert hash_64(seed, update, token_ids).tolist() == expected


def test_every_bit_is_a_fair_and_independent_coin():
    num_tokens = 20_000
    hashes = hash_64(3, 5, torch.arange(num_tokens))
    bits = ((hashes.unsqueeze(1) >> torch.arange(63)) & 1).double() * 2 - 1
    # Each mean and each correlation of two bits has standard deviation 1 / sqrt(n); 5.5 of them is safe in 2016 draws.
    correlations = bits.T @ bits / num_tokens - torch.eye(63, dtype=torch.float64)
    assert bits.mean(0).abs().max() < 5.5 / num_tokens**0.5
    assert correlations.abs().max() < 5.5 / num_tokens**0.5


def test_neighbouring_seeds_and_updates_are_unrelated():
    token_ids = torch.arange(20_000)
    streams = torch.stack([hash_64(seed, update, token_ids).double() for seed in (0, 1, 2) for update in (0, 1, 2)])
    correlations = torch.corrcoef(streams) - torch.eye(9, dtype=torch.float64)
    assert correlations.abs().max() < 5.5 / 20_000**0.5


def test_a_token_draws_the_same_number_wherever_it_sits():
    token_ids = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) * 977
    whole = hash_64(7, 9, token_ids)
    assert torch.equal(whole, torch.cat([hash_64(7, 9, part) for part in token_ids.split(13)]))
    assert torch.equal(whole.view(10, 100), hash_64(7, 9, token_ids.view(10, 100)))
    assert hash_64(7, 9, token_ids[:0]).shape == (0,)
