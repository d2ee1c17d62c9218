"""
From a dense agent to C: prune, recover, quantize, export, compare.

    python docs/examples/dense_zip_to_c.py [STEPS]     # 5,000 steps, a minute or two; writes the folder pendulum_c
"""

import sys

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_sparse

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000


def measured(name, model):
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5)
    print(f"{name:>20}: return {mean:8.1f}")
    return model


dense = SAC("MlpPolicy", "Pendulum-v1", seed=0).learn(steps)
measured("dense", dense).save("pendulum_dense")  # what one usually begins with: a zip

pruned = sb3_sparse.sparsify("pendulum_dense.zip", {"actor": 0.95}, env=dense.get_env())
measured("pruned", pruned)
pruned.learn(max(steps // 5, 200), reset_num_timesteps=False)
measured("pruned, recovered", pruned)

small = measured("8 bits", sb3_sparse.quantize(pruned, bits=8))
sb3_sparse.export(small, "pendulum_c", to="c")
sb3_sparse.export(small, "pendulum.sb3s", to="packed")

# Between the observation's integers and the last ones all formats agree to the bit; scaling the action to its bounds is float
policy = sb3_sparse.load_policy("pendulum.sb3s")
observations = np.stack([dense.observation_space.sample() for _ in range(1_000)])
ours, theirs = policy.predict(observations, deterministic=True)[0], small.predict(observations, deterministic=True)[0]
print(f"largest difference of 1,000 actions: {np.abs(ours - theirs).max()}")
