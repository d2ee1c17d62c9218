"""Environment steps per second of whole ``learn()``, stock against sparse, in turns."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch as th

from sb3_sparse.benchmark.arguments import net_arch, positive, show, sparsity
from sb3_sparse.benchmark.models import ALGORITHMS
from sb3_sparse.engine import native


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of the ``train`` sub-command.
    """
    parser.add_argument("--algo", choices=["td3", "sac"], default="td3")
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--net", type=net_arch, default=[256, 256])
    parser.add_argument("--sparsity", nargs="+", type=sparsity, default=[0.95])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--steps", type=positive, default=500, help="environment steps per round, one gradient step each")
    parser.add_argument("--json", action="store_true")


def measure(
    algo: str, env: str, kwargs: dict[str, dict[str, Any] | None], *, widths: list[int], batch: int, rounds: int, steps: int
) -> dict[str, list[float]]:
    """
    :param algo: ``"td3"`` or ``"sac"``.
    :param env: Environment.
    :param kwargs: ``policy_kwargs`` by variant, None: the stock policy.
    :param widths: Hidden widths.
    :param batch: Samples per gradient step.
    :param rounds: Turns of every variant.
    :param steps: Environment steps per turn.
    :return: Environment steps per second of every turn.
    """
    algorithm: Any = ALGORITHMS[algo]
    models = {}
    for name, value in kwargs.items():
        models[name] = algorithm(
            "MlpPolicy" if value is None else "SparseMlpPolicy",
            env,
            policy_kwargs={"net_arch": widths, **(value or {})},
            batch_size=batch,
            learning_starts=batch,
            buffer_size=rounds * steps + 2000,
            train_freq=1,
            gradient_steps=1,
            seed=0,
            device="cpu",
        )
        models[name].learn(2 * batch)  # past the random steps
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            before, start = model.num_timesteps, time.perf_counter()
            model.learn(steps, reset_num_timesteps=False)
            speeds[name].append((model.num_timesteps - before) / (time.perf_counter() - start))
    return speeds


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    th.set_num_threads(arguments.threads)
    engine = "native" if native.available() else "torch"
    kwargs: dict[str, dict[str, Any] | None] = {"stock": None}
    kwargs |= {f"{value:g}": dict(sparsity=value, engine=engine) for value in arguments.sparsity}
    speeds = measure(
        arguments.algo,
        arguments.env,
        kwargs,
        widths=arguments.net,
        batch=arguments.batch,
        rounds=arguments.rounds,
        steps=arguments.steps,
    )
    rows = []
    for name, found in speeds.items():
        ratios = [own / stock for own, stock in zip(found, speeds["stock"], strict=True)]
        row = {"algorithm": arguments.algo, "environment": arguments.env, "variant": name}
        rows.append({**row, "steps per second": statistics.median(found), "x stock": statistics.median(ratios)})
    note = (
        f"whole learn(), one gradient step of batch {arguments.batch} per environment step, net "
        f"{','.join(map(str, arguments.net))}, medians of {arguments.rounds} turns of {arguments.steps} steps"
    )
    show(rows, note, as_json=arguments.json)
