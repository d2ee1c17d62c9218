"""Whole ``learn()``, stock against sparse, in turns: environment steps per second, or the time to reach a return."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.accelerated import accelerate
from sb3_sparse.benchmark.arguments import (
    COMPILED,
    SBX,
    add_against,
    continuous_env,
    fraction,
    net_arch,
    positive,
    seed_number,
    show,
    sparsity,
)
from sb3_sparse.benchmark.compiled import compile_networks
from sb3_sparse.benchmark.models import ALGORITHMS
from sb3_sparse.benchmark.sbx import require_sbx, sbx_class
from sb3_sparse.benchmark.step import ACCELERATED
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.engine import native

#: What changes masks.
UPDATERS: dict[str, Callable[..., SET] | None] = {
    "static": None,
    "set": SET,
    "set-own": partial(SET, target="own_topk"),
    "rigl": RigL,
}
#: Of TD3's exploration, as in its paper and rl-zoo3's configurations.
_NOISE = 0.1
#: Seed of the evaluations, apart from those of the trainings.
_EVALUATION_SEED = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments of ``train``.

    :param parser: Parser of the ``train`` sub-command.
    """
    parser.add_argument("--algo", choices=["td3", "sac"], default="td3")
    parser.add_argument("--env", type=continuous_env, default="Hopper-v4")
    parser.add_argument("--net", type=net_arch, default=[256, 256])
    parser.add_argument("--sparsity", nargs="+", type=sparsity, default=[0.95])
    parser.add_argument(
        "--updater",
        nargs="+",
        choices=list(UPDATERS),
        default=["static"],
        help="what changes masks (set-own: SET, targets keep masks of their own): each is measured at every sparsity",
    )
    parser.add_argument("--updates", type=positive, default=100, help="how often masks change in the whole training")
    parser.add_argument("--drop-fraction", type=fraction, default=0.5, help="how much of a layer they change at first")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=10, help="turns of each variant")
    parser.add_argument("--steps", type=positive, default=500, help="environment steps per turn, one gradient step each")
    parser.add_argument("--until", type=float, metavar="RETURN", help="train until an evaluation reaches this mean return")
    parser.add_argument("--episodes", type=positive, default=10, help="episodes of each evaluation, one after every turn")
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0], help="seeds of the trainings")
    parser.add_argument("--learning-starts", type=positive, help="random steps at the beginning; one batch if left out")
    parser.add_argument("--accelerate", action="store_true", help="each variant under accelerate() too, and a dense one")
    add_against(parser)
    parser.add_argument("--json", action="store_true")


@dataclass(frozen=True)
class Variant:
    """
    What is measured against stock.

    :param policy_kwargs: Keyword arguments of the sparse policy; None for the stock policy.
    :param updater: A key of :data:`UPDATERS`.
    :param dense: A name of :data:`sb3_sparse.benchmark.arguments.AGAINST`; None for stock and sparse models.
    :param accelerated: Whether :func:`~sb3_sparse.accelerated.accelerate` runs it.
    """

    policy_kwargs: dict[str, Any] | None = None
    updater: str = "static"
    dense: str | None = None
    accelerated: bool = False

    def make(self, arguments: argparse.Namespace, seed: int, total: int) -> tuple[OffPolicyAlgorithm, BaseCallback | None]:
        """
        Make a model of this variant.

        :param arguments: Parsed by :func:`add_arguments`.
        :param seed: Of everything.
        :param total: Environment steps of the whole training, which is made of many short ``learn()``.
        :return: A model that nothing is trained of yet, and the callback that it is trained with.
        """
        algorithm: Any = sbx_class(arguments.algo) if self.dense == SBX else ALGORITHMS[arguments.algo]
        env = make_vec_env(arguments.env, seed=seed)
        n_actions = int(np.prod(env.action_space.shape))  # type: ignore[arg-type]
        model = algorithm(
            "MlpPolicy" if self.policy_kwargs is None else "SparseMlpPolicy",
            env,
            policy_kwargs={"net_arch": arguments.net, **(self.policy_kwargs or {})},
            action_noise=NormalActionNoise(np.zeros(n_actions), np.full(n_actions, _NOISE))
            if arguments.algo == "td3"
            else None,
            batch_size=arguments.batch,
            learning_starts=arguments.learning_starts or arguments.batch,
            buffer_size=total,
            train_freq=1,
            gradient_steps=1,
            seed=seed,
            device="cpu",
        )
        if self.dense == COMPILED:
            compile_networks(model)
        if self.accelerated:
            accelerate(model)
        if (updater := UPDATERS[self.updater]) is None:
            return model, None
        stop = max(total, model.learning_starts + 1)
        every = max(total // arguments.updates, 1)
        return model, updater(every, arguments.drop_fraction, "cosine", stop=stop, unit="timesteps")


def speeds(arguments: argparse.Namespace, variants: dict[str, Variant]) -> list[dict[str, Any]]:
    """
    Environment steps per second of every variant, in turns.

    :param arguments: Parsed by :func:`add_arguments`.
    :param variants: What is measured, by name; ``"stock"`` is among them.
    :return: A row for each variant: medians of environment steps per second, and of the ratio to the stock policy's.
    """
    warmup = (arguments.learning_starts or arguments.batch) + arguments.batch  # past the random steps
    total = warmup + arguments.rounds * arguments.steps
    models = {name: variant.make(arguments, arguments.seeds[0], total) for name, variant in variants.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    for model, _ in models.values():
        model.learn(warmup)
    for _ in range(arguments.rounds):
        for name, (model, callback) in models.items():
            before, start = model.num_timesteps, time.perf_counter()
            model.learn(arguments.steps, callback, reset_num_timesteps=False)
            found[name].append((model.num_timesteps - before) / (time.perf_counter() - start))
    rows = []
    for name, own in found.items():
        ratios = [one / stock for one, stock in zip(own, found["stock"], strict=True)]
        row = {"algorithm": arguments.algo, "environment": arguments.env, "variant": name}
        rows.append({**row, "steps per second": statistics.median(own), "x stock": statistics.median(ratios)})
    return rows


def times_to_return(arguments: argparse.Namespace, variants: dict[str, Variant]) -> list[dict[str, Any]]:
    """
    Steps and seconds until a return is reached, of every variant, in turns.

    :param arguments: Parsed by :func:`add_arguments`.
    :param variants: What is measured, by name; ``"stock"`` is among them.
    :return: A row for each seed and variant: environment steps and seconds of ``learn()`` until the first evaluation that
        reached the return, evaluations not counted; ``"-"`` where none did within all turns. Variants take turns, so that
        whatever else the machine does hits all alike.
    """
    rows, total = [], arguments.rounds * arguments.steps
    for seed in arguments.seeds:
        models = {name: variant.make(arguments, seed, total) for name, variant in variants.items()}
        seconds = dict.fromkeys(models, 0.0)
        best = dict.fromkeys(models, -float("inf"))
        env = make_vec_env(arguments.env, seed=_EVALUATION_SEED)
        for _ in range(arguments.rounds):
            for name, (model, callback) in models.items():
                if best[name] >= arguments.until:
                    continue
                start = time.perf_counter()
                model.learn(arguments.steps, callback, reset_num_timesteps=False)
                seconds[name] += time.perf_counter() - start
                env.seed(_EVALUATION_SEED)
                mean = evaluate_policy(model, env, n_eval_episodes=arguments.episodes)[0]
                best[name] = max(best[name], float(mean))  # type: ignore[arg-type]
        for name, (model, _) in models.items():
            reached = best[name] >= arguments.until
            both = reached and best["stock"] >= arguments.until
            rows.append(
                {
                    "algorithm": arguments.algo,
                    "environment": arguments.env,
                    "seed": seed,
                    "variant": name,
                    "best return": best[name],
                    "steps": model.num_timesteps if reached else "-",
                    "seconds": seconds[name] if reached else "-",
                    "x stock": seconds["stock"] / seconds[name] if both else "-",
                    "steps per second": model.num_timesteps / seconds[name],
                }
            )
    return rows


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    th.set_num_threads(arguments.threads)
    engine = "native" if native.available() else "torch"
    variants = {"stock": Variant()}
    if SBX in arguments.against:
        require_sbx([arguments.threads])
    variants.update({name: Variant(dense=name) for name in arguments.against})
    for value in arguments.sparsity:
        for updater in arguments.updater:
            variants[f"{value:g} {updater}"] = Variant(dict(sparsity=value, engine=engine), updater)
    if arguments.accelerate:
        own = {name: variant for name, variant in variants.items() if variant.policy_kwargs is not None}
        for name, variant in {"dense": Variant(dict(sparsity=0.0, engine=engine)), **own}.items():
            variants[f"{name}{ACCELERATED}"] = replace(variant, accelerated=True)
    what = (
        f"whole learn(), one gradient step of batch {arguments.batch} per environment step, net "
        f"{','.join(map(str, arguments.net))}, turns of {arguments.steps} steps, "
    )
    if arguments.until is None:
        show((what + f"medians of {arguments.rounds}", speeds(arguments, variants)), as_json=arguments.json)
    else:
        what += f"until an evaluation of {arguments.episodes} episodes reaches {arguments.until:g}; at most {arguments.rounds}"
        show((what, times_to_return(arguments, variants)), as_json=arguments.json)
