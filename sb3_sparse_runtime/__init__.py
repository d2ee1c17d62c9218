"""
Policies without torch and without Stable-Baselines3: numpy, and a compiled runner where a C compiler was there.

    from sb3_sparse_runtime import load_policy

    policy = load_policy("policy.sb3s")
    action, _ = policy.predict(observation)
"""

from sb3_sparse_runtime.errors import InvalidPolicyError
from sb3_sparse_runtime.policy import Policy, load_policy

__all__ = ["InvalidPolicyError", "Policy", "load_policy"]
