"""
A whole gradient step, stock ``train()``, of sparse policies against stock Stable-Baselines3, against the best dense torch
there is under the same ``train()`` (fused Adam; no gradients for the critic's weights in the actor's update), and masks
over dense tensors (engine ``torch``), as every paper repository has them. All take turns in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.accelerated import accelerate
from sb3_sparse.accelerated.accelerate import Train
from sb3_sparse.accelerated.samples import Sampler
from sb3_sparse.benchmark.arguments import COMPILED, SBX, add_against, net_arch, positive, show, sparsity
from sb3_sparse.benchmark.compiled import compile_networks
from sb3_sparse.benchmark.models import ALGORITHMS, make_model
from sb3_sparse.benchmark.sbx import make_sbx_model, require_sbx, step_by_step
from sb3_sparse.benchmark.timing import Timing, interleave
from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.engine.survivors import Survivors

#: How names of variants end that :func:`~sb3_sparse.accelerated.accelerate` runs.
ACCELERATED = ", accelerated"
#: The kernels' functions that accelerated steps are made of.
STEP_CALLS = ("td3_critics", "td3_actor", "sac_draw", "sac_critics", "sac_actor", "dqn")
#: Rounds of a variant take at least about this long, in seconds.
_SECONDS_PER_ROUND = 0.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``step``.

    :param parser: Parser of the ``step`` sub-command.
    """
    parser.add_argument("--algo", nargs="+", choices=list(ALGORITHMS), default=["td3"])
    parser.add_argument("--net", nargs="+", type=net_arch, default=[[256, 256], [400, 300]], help="e.g. 256,256 1024,1024")
    parser.add_argument("--sparsity", nargs="*", type=sparsity, default=[0.75, 0.9, 0.95, 0.99])
    parser.add_argument("--pattern", nargs="*", default=[], help="PATTERN, or PATTERN@SPARSITY: 2:4, block:4x1@0.9, ...")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--threads", nargs="+", type=positive, default=[1])
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--masked", action="store_true", help="also masks over dense tensors, at each sparsity")
    parser.add_argument("--accelerate", action="store_true", help="each variant under accelerate() too, and a dense one")
    parser.add_argument("--breakdown", action="store_true", help="where the time of a step goes")
    add_against(parser)
    sets = native.module.available_sets() if native.available() else []
    parser.add_argument("--instruction-set", choices=sets, help="of the kernels; the widest of this machine if left out")
    parser.add_argument("--json", action="store_true")


def freeze_critic(model: OffPolicyAlgorithm) -> None:
    """
    Spare a stock model the gradients of the critic's weights in the actor's update, which nobody uses.

    :param model: TD3 or SAC with a stock ``MlpPolicy``; another algorithm has no such update.
    """
    if not isinstance(model, (TD3, SAC)):
        return
    critic = model.critic

    def detached(network: th.nn.Module, x: th.Tensor) -> th.Tensor:
        parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
        return th.func.functional_call(network, parameters, (x,))

    def q1_forward(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        features = critic.extract_features(obs, critic.features_extractor)
        return detached(critic.q_networks[0], th.cat([features, actions], dim=1))

    stock_forward = critic.forward

    def forward(obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        if not actions.requires_grad:
            return stock_forward(obs, actions)
        features = critic.extract_features(obs, critic.features_extractor)
        x = th.cat([features, actions], dim=1)
        return tuple(detached(network, x) for network in critic.q_networks)

    critic.q1_forward = q1_forward  # type: ignore[method-assign]
    critic.forward = forward  # type: ignore[method-assign]


def variants(
    sparsities: list[float], patterns: list[str], *, masked: bool, accelerated: bool = False
) -> dict[str, dict[str, Any] | None]:
    """
    List what is measured.

    :param sparsities: Sparsities of unstructured variants.
    :param patterns: Further variants, see :func:`add_arguments`.
    :param masked: Whether the torch engine is measured at each sparsity too.
    :param accelerated: Whether each variant is measured under :func:`~sb3_sparse.accelerated.accelerate` too, and a dense one.
    :return: ``policy_kwargs`` by name; None: the stock policy.
    """
    engine = "native" if native.available() else "torch"
    found: dict[str, dict[str, Any] | None] = {"stock": None, "best dense": {"optimizer_kwargs": {"fused": True}}}
    for value in sparsities:
        found[f"{value:g}"] = dict(sparsity=value, engine=engine)
    for text in patterns:
        pattern, _, number = text.partition("@")
        found[text] = dict(pattern=pattern, engine=engine, **({"sparsity": float(number)} if number else {}))
    if accelerated:
        own = {name: kwargs for name, kwargs in found.items() if kwargs is not None and name != "best dense"}
        for name, kwargs in {"dense": dict(sparsity=0.0, engine=engine), **own}.items():
            found[f"{name}{ACCELERATED}"] = kwargs
    if masked:
        for value in sparsities:
            found[f"{value:g} masked dense"] = dict(sparsity=value, engine="torch")
    return found


def _model(algo: str, widths: list[int], name: str, kwargs: dict[str, Any] | None, batch: int) -> OffPolicyAlgorithm:
    dense = name in ("stock", "best dense")
    model = make_model(algo, widths, kwargs, batch_size=batch, sparse=not dense)
    if name == "best dense":
        freeze_critic(model)
    return accelerate(model) if name.endswith(ACCELERATED) else model


def measure(
    algo: str,
    widths: list[int],
    kwargs: dict[str, dict[str, Any] | None],
    *,
    batch: int,
    rounds: int,
    against: Sequence[str] = (),
    steps: int | None = None,
) -> tuple[dict[str, Timing], dict[str, OffPolicyAlgorithm]]:
    """
    Time a gradient step of all variants, which take turns.

    :param algo: ``"td3"``, ``"sac"`` or ``"dqn"``.
    :param widths: Hidden widths.
    :param kwargs: See :func:`variants`.
    :param batch: Samples per gradient step.
    :param rounds: Timings of each variant.
    :param against: Names of :data:`sb3_sparse.benchmark.arguments.AGAINST`: measured too, under these names. SBX is measured
        as the others are, all steps of a timing by one call of ``train()``, and by a call for each.
    :param steps: Gradient steps of a timing; None: as many as take about 0.15 seconds.
    :return: Timing of one gradient step by variant, and the models.
    """
    models = {name: _model(algo, widths, name, value, batch) for name, value in kwargs.items()}
    if COMPILED in against:
        models[COMPILED] = compile_networks(make_model(algo, widths, None, batch_size=batch))
    if steps is None:
        start = time.perf_counter()
        models["stock"].train(4, batch)
        # An even number: TD3's actor has every second step
        steps = 2 * max(1, round(_SECONDS_PER_ROUND / (time.perf_counter() - start) * 2))
    calls: dict[str, Callable[[], object]] = {name: partial(model.train, steps, batch) for name, model in models.items()}
    if SBX in against:
        model = make_sbx_model(algo, widths, batch_size=batch)
        calls[SBX] = partial(model.train, steps, batch)
        calls[f"{SBX}, one by one"] = partial(step_by_step, model, steps, batch)
    timings = interleave(calls, "stock", rounds=rounds, calls=1)
    return {name: timing.per(steps) for name, timing in timings.items()}, models


def row_of(algo: str, widths: list[int], threads: int, name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    """
    Compare a variant with stock, and with the best dense torch where that is measured: each in the same rounds.

    :param algo: Name of the algorithm.
    :param widths: Hidden widths.
    :param threads: Of torch.
    :param name: The variant.
    :param timings: Of all variants.
    :return: By column.
    """
    timing = timings[name]
    row: dict[str, Any] = {"algorithm": algo, "net": ",".join(map(str, widths)), "threads": threads, "variant": name}
    row["ms"] = timing.seconds * 1e3
    row["x stock"] = 1 / timing.ratio
    row["quartiles"] = f"{1 / timing.high:.2f}-{1 / timing.low:.2f}"
    if "best dense" in timings:
        row["x best dense"] = timing.times_faster_than(timings["best dense"])
    return row


def breakdown(model: OffPolicyAlgorithm, batch: int, steps: int = 100) -> dict[str, float]:
    """
    Where the time of a gradient step goes.

    :param model: A model that has trained before.
    :param batch: Samples per gradient step.
    :param steps: Gradient steps to look at.
    :return: Microseconds per gradient step: in native kernels, in bringing survivors from and to dense tensors, optimizer
        steps and target updates without that, sampling, and everything else (torch's operations, autograd and Python).
        Watching costs time too: the sum is more than an unwatched step.
    """
    spent = {"kernels": 0.0, "dense copies": 0.0, "Adam": 0.0, "Polyak": 0.0, "sampling": 0.0}
    inner = [0.0]  # seconds spent in watched calls within each call that is being watched

    def watch(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                spent[part] += whole - inner.pop()
                inner[-1] += whole

        return watched

    watched_functions: list[tuple[Any, str, str]] = []
    if native.available():
        names = [name for name in ("forward", "backward", *STEP_CALLS) if hasattr(native.module, name)]
        watched_functions += [(native.module, name, "kernels") for name in names]
        watched_functions.append((native.module.Deltas, "weight_gradient", "kernels"))
        copies = ("gather_weight", "scatter_weight", "scatter_values", "gather_gradients", "scatter_gradients")
        watched_functions += [(native.module.Network, name, "dense copies") for name in copies]
    if isinstance(vars(model).get("train"), Train):
        # An object with a method of its own is left to stock: the classes are watched
        watched_functions += [(SurvivorAdam, "step", "Adam"), (Survivors, "average", "Polyak"), (Sampler, "draw", "sampling")]
    else:
        policy: Any = model.policy
        owners = [owner for owner in policy.modules() if isinstance(getattr(owner, "optimizer", None), th.optim.Optimizer)]
        watched_functions += [(owner.optimizer, "step", "Adam") for owner in owners]
        watched_functions.append((import_module(type(model).train.__module__), "polyak_update", "Polyak"))
        watched_functions.append((model.replay_buffer, "sample", "sampling"))
    with ExitStack() as stack:
        for owner, name, what in watched_functions:
            stack.enter_context(patch.object(owner, name, watch(what, getattr(owner, name))))
        start = time.perf_counter()
        model.train(steps, batch)
        total = time.perf_counter() - start
    parts = {**spent, "torch and Python": total - sum(spent.values())}
    return {name: seconds / steps * 1e6 for name, seconds in parts.items()}


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    if SBX in arguments.against:
        require_sbx(arguments.threads)
    if arguments.instruction_set is not None:
        native.module.choose_set(arguments.instruction_set)
    kwargs = variants(arguments.sparsity, arguments.pattern, masked=arguments.masked, accelerated=arguments.accelerate)
    rows, parts = [], []
    for threads in arguments.threads:
        th.set_num_threads(threads)
        for algo in arguments.algo:
            for widths in arguments.net:
                timings, models = measure(
                    algo, widths, kwargs, batch=arguments.batch, rounds=arguments.rounds, against=arguments.against
                )
                for name in timings:
                    row = row_of(algo, widths, threads, name, timings)
                    rows.append(row)
                    if arguments.breakdown and name in models:
                        found = breakdown(models[name], arguments.batch)
                        parts.append(
                            {**dict(list(row.items())[:4]), **{f"{part} (us)": value for part, value in found.items()}}
                        )
                del models
    note = (
        f"gradient steps of stock train(), batch {arguments.batch}, medians of {arguments.rounds} interleaved rounds, "
        f"instruction set {native.instruction_set()}"
    )
    watched = [("microseconds of one gradient step; watching included", parts)] if parts else []
    show((note, rows), *watched, as_json=arguments.json)
