"""The policy on Megatron-Core: model, weights, passes, optimizer. The only folder that imports Megatron."""

from __future__ import annotations

from megacov.megatron.compat import quiet_import

quiet_import()
