"""Imports everything that a rank, a server or the command imports, so that processes forked from here need not.

Importing changes nothing that a process could tell: no operation of torch runs here, and no thread starts.
"""

from __future__ import annotations

import gc
import importlib

MODULES = (
    "megacov.megatron",  # before anything else imports Megatron, which it keeps quiet
    "megacov.cli.main",
    "megacov.cli.deep_check",
    "megacov.cli.viewer.loop",
    "megacov.cli.viewer.plain",
    "megacov.trainer.loop",
    "megacov.evaluation.evaluate",
    "megacov.embedded_server.server",
    "anyio._backends._asyncio",
    "httpcore",
    "torch.distributed.tensor.debug",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
)

for _name in MODULES:
    importlib.import_module(_name)

# A collection in a forked process would write to, and so copy, every page that holds an object from here.
gc.collect()
gc.freeze()
