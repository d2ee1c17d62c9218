"""SBX (Stable-Baselines3 in JAX) beside stock and sparse models, with as many threads as they have."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from sb3_sparse.benchmark.models import BUFFER_SIZE, SyntheticEnv, fill

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def require_sbx(threads: Sequence[int]) -> None:
    """
    Import SBX, or say what is missing.

    :param threads: Numbers of threads that will be measured. XLA's are decided once per process, when JAX is imported.
    :raises ImportError: Without SBX.
    :raises ValueError: For several numbers of threads, or one thread where JAX was imported before with more.
    """
    if len(set(threads)) > 1:
        raise ValueError(f"`--against sbx` measures one number of threads per process, got {sorted(set(threads))}")
    if set(threads) == {1}:
        flags = os.environ.get("XLA_FLAGS", "")
        if "jax" in sys.modules and _ONE_THREAD not in flags:
            raise ValueError(f"`--against sbx` with one thread: JAX is imported already; start with XLA_FLAGS={_ONE_THREAD!r}")
        if _ONE_THREAD not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {_ONE_THREAD}".strip()
    try:
        import sbx  # noqa: F401
    except ImportError as error:
        raise ImportError(f"`--against sbx` needs SBX ({error}): pip install 'sb3-sparse[sbx]'") from error


def sbx_class(algo: str) -> Any:
    """
    The class of an algorithm.

    :param algo: ``"td3"``, ``"sac"`` or ``"dqn"``.
    :return: SBX's class of it.
    """
    import sbx

    return {"td3": sbx.TD3, "sac": sbx.SAC, "dqn": sbx.DQN}[algo]


def make_sbx_model(algo: str, net_arch: Sequence[int], *, batch_size: int, seed: int = 0) -> Any:
    """
    Make SBX's counterpart of :func:`sb3_sparse.benchmark.models.make_model`.

    :param algo: ``"td3"``, ``"sac"`` or ``"dqn"``.
    :param net_arch: Widths of the hidden layers.
    :param batch_size: Samples per gradient step.
    :param seed: Seed of weights and data.
    :return: The model; its replay buffer is full.
    """
    env = SyntheticEnv(discrete=algo == "dqn")
    policy_kwargs = {"net_arch": list(net_arch)}
    model = sbx_class(algo)(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, buffer_size=BUFFER_SIZE, batch_size=batch_size, seed=seed
    )
    fill(model, seed)
    return model


def step_by_step(model: Any, steps: int, batch_size: int) -> None:
    """
    Gradient steps by a call each, as ``learn()`` makes them with ``gradient_steps=1``. (SBX makes one compiled loop of the
    steps of one call.)

    :param model: A model of SBX.
    :param steps: How many.
    :param batch_size: Samples per gradient step.
    """
    for _ in range(steps):
        model.train(gradient_steps=1, batch_size=batch_size)
