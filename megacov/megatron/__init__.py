"""The policy on Megatron-Core: model, weights, passes and optimizer. No other folder imports Megatron."""

from __future__ import annotations

from megacov.megatron.compat import quiet_import

quiet_import()
