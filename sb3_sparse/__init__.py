"""
Sparse policies for Stable-Baselines3.

Importing this package registers ``SparseMlpPolicy``, ``SparseCnnPolicy`` and ``SparseMultiInputPolicy`` with every supported
algorithm of Stable-Baselines3 and sb3-contrib.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from sb3_sparse.accelerated import accelerate
from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.callbacks.accelerate import Accelerate
from sb3_sparse.callbacks.gradual_pruning import GradualPruning
from sb3_sparse.callbacks.mask_refresh import MaskRefresh
from sb3_sparse.callbacks.quantization_aware import QuantizationAware
from sb3_sparse.callbacks.replay import DelayedNStep, DynamicReplayCapacity
from sb3_sparse.callbacks.replay_reset import ReplayReset
from sb3_sparse.callbacks.revival import Revival
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.callbacks.sparsity_logger import SparsityLogger
from sb3_sparse.checkpoint.resuming import resume
from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint
from sb3_sparse.conversion.quantize import quantize
from sb3_sparse.conversion.shrink import shrink
from sb3_sparse.conversion.sparsify import sparsify
from sb3_sparse.conversion.to_stock import to_stock
from sb3_sparse.conversion.untrusted import load_untrusted
from sb3_sparse.export import export
from sb3_sparse.policies import SparsePolicyMixin, register_policies, sparse_policy
from sb3_sparse.tuning.search_for import SearchFor
from sb3_sparse.utils.old_paths import keep_old_paths
from sb3_sparse.zoo.presets import preset
from sb3_sparse_runtime import load_policy

__version__ = version("sb3-sparse")

__all__ = [
    "SET",
    "Accelerate",
    "DelayedNStep",
    "DynamicNStepReplayBuffer",
    "DynamicReplayCapacity",
    "GradualPruning",
    "MaskRefresh",
    "QuantizationAware",
    "ReplayReset",
    "Revival",
    "RigL",
    "RunCheckpoint",
    "SearchFor",
    "SparsePolicyMixin",
    "SparsityLogger",
    "accelerate",
    "export",
    "load_policy",
    "load_untrusted",
    "preset",
    "quantize",
    "resume",
    "shrink",
    "sparse_policy",
    "sparsify",
    "sparsity_report",
    "to_stock",
]

#: Names that stood here before: configurations of rl-zoo3 and saved models have them.
_MOVED = {
    "SparsityReport": "analysis.report",
    "TopologyEvent": "callbacks.events",
    "integer_arithmetic": "nn.integer_layers",
    "integer_forward": "analysis.integer_forward",
    "register_policies": "policies",
}


def __getattr__(name: str) -> Any:
    module = _MOVED.get(name) or ("policies" if name.startswith("Sparse") and name.endswith("Policy") else None)
    if module is not None and (value := getattr(import_module(f"{__name__}.{module}"), name, None)) is not None:
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


keep_old_paths()
register_policies()

if "rl_zoo3.hyperparams_opt" in sys.modules:
    # rl-zoo3 has imported this package, as it does for a policy, a callback or --gym-packages
    from sb3_sparse.tuning.zoo import register_searches

    register_searches()
