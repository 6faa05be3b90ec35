"""Which megatron-core is installed, and what differs between 0.16 and 0.19. No other module checks the version."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from importlib.metadata import version

from megacov.errors import ConfigError

SUPPORTED = ((0, 16), (0, 19))
# Loggers to silence. 0.19 warns on every rank that GPTModel gets no new features (0.16 lacks its successor) and that it
# lays out the optimizer's buffers by itself, which earlier versions do silently.
_ADVISERS = ("megatron.core.models.gpt.gpt_model", "megatron.core.distributed.distributed_data_parallel")


def megatron_version() -> tuple[int, int]:
    """(major, minor) of the installed megatron-core; raises ConfigError outside the supported range."""
    text = version("megatron-core")
    found = tuple(int(part) for part in text.split(".")[:2])
    if not SUPPORTED[0] <= found <= SUPPORTED[1]:
        raise ConfigError(
            f"megatron-core {text} is installed, but megacov runs on 0.16 to 0.19: install a version in that range."
        )
    return found[0], found[1]


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed, so that Megatron offers its attention, norms and fused linears."""
    return importlib.util.find_spec("transformer_engine") is not None


def quiet_import() -> None:
    """Import Megatron-Core without its warnings about packages and settings that users of megacov do not choose.

    `megacov doctor` reports what is installed. Deprecations of torch.distributed concern Megatron, not our users.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    megatron_version()
    from megatron.core.transformer.moe import moe_utils

    # 0.16's float32 router checks whether this is None, but without Transformer Engine nothing defines it.
    vars(moe_utils).setdefault("te_general_gemm", None)
