"""When masks, precision and replay change while a network trains."""

from sb3_sparse.callbacks.base import TopologyEvent
from sb3_sparse.callbacks.gradual_pruning import GradualPruning
from sb3_sparse.callbacks.mask_refresh import MaskRefresh
from sb3_sparse.callbacks.quantization_aware import QuantizationAware
from sb3_sparse.callbacks.replay import DelayedNStep, DynamicReplayCapacity
from sb3_sparse.callbacks.replay_reset import ReplayReset
from sb3_sparse.callbacks.revival import Revival
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.callbacks.sparsity_logger import SparsityLogger

__all__ = [
    "SET",
    "DelayedNStep",
    "DynamicReplayCapacity",
    "GradualPruning",
    "MaskRefresh",
    "QuantizationAware",
    "ReplayReset",
    "Revival",
    "RigL",
    "SparsityLogger",
    "TopologyEvent",
]
