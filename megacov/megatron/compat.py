"""The one place that knows which megatron-core this is, and what differs between 0.16 and 0.19."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from importlib.metadata import version

from megacov.errors import ConfigError

SUPPORTED = ((0, 16), (0, 19))
# 0.19 warns in every rank that GPTModel gets no new features (its heir does not exist in 0.16), and that it lays out
# the buffers of the optimizer by itself, as earlier versions do in silence.
_ADVISERS = ("megatron.core.models.gpt.gpt_model", "megatron.core.distributed.distributed_data_parallel")


def megatron_version() -> tuple[int, int]:
    """Major and minor of the installed megatron-core.

    Returns:
        (major, minor).

    Raises:
        ConfigError: outside the supported range.
    """
    text = version("megatron-core")
    found = tuple(int(part) for part in text.split(".")[:2])
    if not SUPPORTED[0] <= found <= SUPPORTED[1]:
        raise ConfigError(
            f"megatron-core {text} is installed, but megacov runs on 0.16 to 0.19: install a version in that range."
        )
    return found[0], found[1]


def has_transformer_engine() -> bool:
    """Whether Transformer Engine can be imported; Megatron then offers its attention, norms and fused linears.

    Returns:
        True where the package is installed.
    """
    return importlib.util.find_spec("transformer_engine") is not None


def quiet_import() -> None:
    """Import Megatron-Core without its advice on packages and settings that users of megacov do not choose.

    `megacov doctor` says once what is installed. What torch.distributed deprecates is Megatron's to follow.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    megatron_version()
    from megatron.core.transformer.moe import moe_utils

    # 0.16's router in float32 asks whether this is None, and forgets to say so where Transformer Engine is missing.
    vars(moe_utils).setdefault("te_general_gemm", None)
