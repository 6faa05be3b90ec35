"""Which names and values look like secrets: the words of a name count, not its letters."""

from __future__ import annotations

import pytest

from megacov.config.secret_values import is_secret, is_secret_value


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PAT",
            "GITHUB_PAT",
            "HF_TOKEN",
            "hf-token",
            "hfToken",
            "DB_PASSWORD",
            "MYSQL_PWD_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
        ),
        *(
            "WANDB_API_KEY",
            "OPENAI_APIKEY",
            "AUTHTOKEN",
            "GOOGLE_CREDENTIAL",
            "SESSION_COOKIE",
            "HF_TOKEN2",
            "API_KEYS",
        ),
    ],
)
def test_a_name_with_such_a_word_is_one_of_a_secret(name: str) -> None:
    assert is_secret(name, "abc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PATH", "/bin"), ("KEYBOARD", "us"), ("MONKEY", "1"), ("TURKEY", "a"), ("PATTERN", "x"), ("AUTHOR", "me")),
        *(("TOKENIZERS_PARALLELISM", "false"), ("MAX_TOKENS", "8192"), ("NCCL_IB_PKEY", "0x1"), ("COMPASS", "north")),
        *(
            ("SSH_AUTH_SOCK", "/run/x"),
            ("KEY_FILE", "/k"),
            ("speculative-token-map", "/m"),
            ("PWD", "/home"),
            ("A", ""),
        ),
    ],
)
def test_other_names_are_free(name: str, value: str) -> None:
    assert not is_secret(name, value)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("https://me:pass@host/path", True),
        ("before postgres://u:p@h/d after", True),
        ("https://abcdefghijklmnopqrst@github.com/x", True),
        ("https://host/?a=1&api_key=abc", True),
        ("hf_abcdefghijklmnopqrst", True),
        ("hf_qwen2_5_7b_instruct_run", False),
        ("hf_checkpoints_of_the_lab/x", False),
        ("sk-proj-aB3dEfGhIjKlMnOp", True),
        ("sk-learn-baseline-of-2026", False),
        ("Authorization: Bearer abcdefgh12345", True),
        ("-----BEGIN RSA PRIVATE KEY-----", True),
        ("https://host:8080/path@x", False),
        ("ssh://git@host/x", False),
        ("https://host/?tokens=", False),
        ("/models/task-sk-short", False),
        ("nvcr.io#nvidia/pytorch:24.05", False),
        ("mlx5_0:1,mlx5_1:1", False),
    ],
)
def test_values(value: str, is_one: bool) -> None:
    assert is_secret_value(value) == is_one
