"""
Sparse from scratch: TD3 on Hopper-v4 with RigL, its report, and its evaluation.

    python docs/examples/sparse_td3_on_hopper.py [STEPS]     # 20,000 steps, some minutes
"""

import sys

from stable_baselines3 import TD3
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_sparse

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
model = TD3(
    "SparseMlpPolicy",
    "Hopper-v4",
    learning_starts=min(5_000, steps // 4),
    policy_kwargs=dict(net_arch=[256, 256], sparsity={"actor": 0.95, "critic": 0.9}),
    seed=0,
)
moves = sb3_sparse.RigL(every=max(steps // 20, 1), drop_fraction=0.3)
model.learn(steps, callback=[moves, sb3_sparse.SparsityLogger()])

print(sb3_sparse.sparsity_report(model))
print(f"masks changed {len(moves.events)} times; broken promises: {model.policy.sparsifier.violations()}")
mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=5)
print(f"return {mean:.0f} +- {std:.0f} over 5 episodes")
model.save("sparse_td3_hopper")
