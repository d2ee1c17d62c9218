"""
Sparse policies for Stable-Baselines3.

Importing this package registers ``SparseMlpPolicy``, ``SparseCnnPolicy`` and ``SparseMultiInputPolicy`` with every supported
algorithm of Stable-Baselines3 and sb3-contrib.
"""

import sys
from importlib.metadata import version

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.callbacks import SparsityLogger
from sb3_sparse.convert import to_stock
from sb3_sparse.gradual import GradualPruning
from sb3_sparse.growth import SET, RigL
from sb3_sparse.integer_policy import integer_forward
from sb3_sparse.policies import (
    SparseActorCriticCnnPolicy,
    SparseActorCriticPolicy,
    SparseCrossQPolicy,
    SparseDQNCnnPolicy,
    SparseDQNMultiInputPolicy,
    SparseDQNPolicy,
    SparseMaskableActorCriticCnnPolicy,
    SparseMaskableActorCriticPolicy,
    SparseMaskableMultiInputActorCriticPolicy,
    SparseMultiInputActorCriticPolicy,
    SparsePolicyMixin,
    SparseQRDQNCnnPolicy,
    SparseQRDQNMultiInputPolicy,
    SparseQRDQNPolicy,
    SparseRecurrentActorCriticCnnPolicy,
    SparseRecurrentActorCriticPolicy,
    SparseRecurrentMultiInputActorCriticPolicy,
    SparseSACCnnPolicy,
    SparseSACMultiInputPolicy,
    SparseSACPolicy,
    SparseTD3CnnPolicy,
    SparseTD3MultiInputPolicy,
    SparseTD3Policy,
    SparseTQCCnnPolicy,
    SparseTQCMultiInputPolicy,
    SparseTQCPolicy,
    register_policies,
    sparse_policy,
)
from sb3_sparse.post_training import quantize
from sb3_sparse.presets import preset
from sb3_sparse.prune import sparsify
from sb3_sparse.quantization import integer_arithmetic
from sb3_sparse.quantization_aware import QuantizationAware
from sb3_sparse.refresh import MaskRefresh
from sb3_sparse.replay import DelayedNStep, DynamicReplayCapacity
from sb3_sparse.report import SparsityReport, sparsity_report
from sb3_sparse.shrink import shrink
from sb3_sparse.topology import TopologyEvent
from sb3_sparse.tuning.search_for import SearchFor

__version__ = version("sb3-sparse")

__all__ = [
    "SET",
    "DelayedNStep",
    "DynamicNStepReplayBuffer",
    "DynamicReplayCapacity",
    "GradualPruning",
    "MaskRefresh",
    "QuantizationAware",
    "RigL",
    "SearchFor",
    "SparseActorCriticCnnPolicy",
    "SparseActorCriticPolicy",
    "SparseCrossQPolicy",
    "SparseDQNCnnPolicy",
    "SparseDQNMultiInputPolicy",
    "SparseDQNPolicy",
    "SparseMaskableActorCriticCnnPolicy",
    "SparseMaskableActorCriticPolicy",
    "SparseMaskableMultiInputActorCriticPolicy",
    "SparseMultiInputActorCriticPolicy",
    "SparsePolicyMixin",
    "SparseQRDQNCnnPolicy",
    "SparseQRDQNMultiInputPolicy",
    "SparseQRDQNPolicy",
    "SparseRecurrentActorCriticCnnPolicy",
    "SparseRecurrentActorCriticPolicy",
    "SparseRecurrentMultiInputActorCriticPolicy",
    "SparseSACCnnPolicy",
    "SparseSACMultiInputPolicy",
    "SparseSACPolicy",
    "SparseTD3CnnPolicy",
    "SparseTD3MultiInputPolicy",
    "SparseTD3Policy",
    "SparseTQCCnnPolicy",
    "SparseTQCMultiInputPolicy",
    "SparseTQCPolicy",
    "SparsityLogger",
    "SparsityReport",
    "TopologyEvent",
    "integer_arithmetic",
    "integer_forward",
    "preset",
    "quantize",
    "register_policies",
    "shrink",
    "sparse_policy",
    "sparsify",
    "sparsity_report",
    "to_stock",
]

register_policies()

if "rl_zoo3.hyperparams_opt" in sys.modules:
    # rl-zoo3 has imported this package, as it does for a policy, a callback or --gym-packages
    from sb3_sparse.tuning.zoo import register_searches

    register_searches()
