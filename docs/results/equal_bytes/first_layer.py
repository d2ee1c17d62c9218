"""
What 8 bits cost a SAC agent, and how much of it is due to the weights of its first layer: returns of four episodes.

python docs/results/equal_bytes/first_layer.py MODEL.zip HalfCheetah-v4
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_sparse


def main(arguments: Sequence[str]) -> None:
    """
    Print a line for each way to round.

    :param arguments: File of the model, name of the environment.
    """
    env = make_vec_env(arguments[1], seed=0)
    model = SAC.load(arguments[0], env=env)

    def show(what: str, agent: Any = model) -> None:
        env.seed(7)
        mean, deviation = evaluate_policy(agent, env, n_eval_episodes=4)
        print(f"{what}: {mean:.0f} +- {deviation:.0f}", flush=True)

    observation, seen = env.reset(), []
    for _ in range(4096):
        observation = env.step(model.predict(observation, deterministic=True)[0])[0]  # type: ignore[arg-type]
        seen.append(observation[0].copy())  # type: ignore[index]
    observations = np.array(seen, dtype=np.float32)
    show("float")
    show("8 bits", sb3_sparse.quantize(model, data=observations))
    show("8 bits, observations in float", sb3_sparse.quantize(model, input_bits="float", data=observations))
    show("8 bits, first layer in float", sb3_sparse.quantize(model, exempt_layers="first", data=observations))
    weight = model.actor.latent_pi[0].weight
    float_weight = weight.detach().clone()
    for what, sizes in (("", th.ones(weight.shape[1])), (" of divided features", th.tensor(np.abs(observations).max(0)))):
        scaled = float_weight * sizes
        scales = scaled.abs().amax(1, keepdim=True) / 127
        with th.no_grad():
            weight.copy_((scaled / scales).round() * scales / sizes)
        show(f"float, but the first layer's weights{what} in 8 bits")


if __name__ == "__main__":
    main(sys.argv[1:])
