"""Plans of a run before it starts: batch arithmetic, ranks on nodes, memory of each GPU, and layouts that fit.

Pure arithmetic over plain values, without torch, so that it runs on a login node. If a size follows from code of
megacov, a test compares it with that code. Each assumption is a named constant with its reason.
"""

from __future__ import annotations

from megacov.plan.batch import Batch, BatchPlan, plan_batch
from megacov.plan.layout import Cluster, Layout, Placement, ServerRequest, place
from megacov.plan.memory import Room, StageMemory, TrainerSettings, plan_room, plan_trainer
from megacov.plan.model_sizes import ModelSizes, read_model_sizes
from megacov.plan.parameters import ParameterCount, count_parameters, total_parameters
from megacov.plan.servers import ServerMemory, plan_server
from megacov.plan.suggest import Search, Suggestion, suggest, suggest_more_gpus

__all__ = [
    "Batch",
    "BatchPlan",
    "Cluster",
    "Layout",
    "ModelSizes",
    "ParameterCount",
    "Placement",
    "Room",
    "Search",
    "ServerMemory",
    "ServerRequest",
    "StageMemory",
    "Suggestion",
    "TrainerSettings",
    "count_parameters",
    "place",
    "plan_batch",
    "plan_room",
    "plan_server",
    "plan_trainer",
    "read_model_sizes",
    "suggest",
    "suggest_more_gpus",
    "total_parameters",
]
