"""Policy losses by name, their weights, and the terms that may be added to any of them."""

from megacov.losses.aggregation import token_weights
from megacov.losses.importance import importance_weights
from megacov.losses.loss import SHARED_METRICS, Loss, Metric, TokenLosses, policy_loss
from megacov.losses.registry import LOSSES, get_loss
from megacov.losses.terms import TERM_METRICS, add_terms

__all__ = [
    "LOSSES",
    "SHARED_METRICS",
    "TERM_METRICS",
    "Loss",
    "Metric",
    "TokenLosses",
    "add_terms",
    "get_loss",
    "importance_weights",
    "policy_loss",
    "token_weights",
]
