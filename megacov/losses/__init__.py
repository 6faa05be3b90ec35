"""Policy losses by name, their weights, and the terms that may be added to any of them."""

from megacov.losses.aggregation import token_weights
from megacov.losses.importance import importance_weights
from megacov.losses.loss import Loss, TokenLosses
from megacov.losses.registry import get_loss
from megacov.losses.terms import add_terms

__all__ = ["Loss", "TokenLosses", "add_terms", "get_loss", "importance_weights", "token_weights"]
