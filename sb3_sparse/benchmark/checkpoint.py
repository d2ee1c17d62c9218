"""
What run checkpoints cost: seconds and MB of each against the size of the replay buffer, their share of a training's time, and
how long reading one takes.

TD3 trains for some real steps; what else a training collects between two checkpoints is put into the buffer at once. So a
buffer of a million transitions needs no million steps. Steps are counted in processor time and checkpoints by the clock: on a
machine that has other things to do the share is an upper bound.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_sparse.benchmark.arguments import net_arch, positive, show, sparsity
from sb3_sparse.checkpoint.resuming import find_store, open_checkpoint
from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``checkpoint``.

    :param parser: Parser of the ``checkpoint`` sub-command.
    """
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--buffer", nargs="+", type=positive, default=[10_000, 100_000, 1_000_000], help="transitions")
    parser.add_argument("--every", type=positive, default=10_000, help="environment steps between two checkpoints")
    parser.add_argument("--steps", type=positive, default=300, help="of them that are trained, and timed")
    parser.add_argument("--rounds", type=positive, default=5, help="checkpoints after the first")
    parser.add_argument("--net", type=net_arch, default=[400, 300])
    parser.add_argument("--sparsity", type=sparsity, default=None, help="left out: a dense policy")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--json", action="store_true")


class _Skip(BaseCallback):
    """
    Puts what was not trained into the buffer just before a checkpoint is due, and times what was.

    :param every: Environment steps between two checkpoints.
    :param steps: Those that are trained.
    :param folder: The run's folder.
    """

    def __init__(self, every: int, steps: int, folder: Path) -> None:
        super().__init__()
        self.every, self.steps, self.folder = every, steps, folder
        #: Seconds of processor time of each run of real steps, and files before each checkpoint.
        self.seconds: list[float] = []
        self.files: list[dict[Path, int]] = []
        self._start = time.process_time()
        self._trained = 0

    def _on_rollout_start(self) -> None:
        if self._trained == self.steps:
            self.seconds.append(time.process_time() - self._start)
            self.files.append(_sizes(self.folder))
            model: Any = self.model
            fill(model.replay_buffer, self.every - self.steps)
            model.num_timesteps += self.every - self.steps
            self._trained = 0
        elif self._trained == 0:
            self._start = time.process_time()
        self._trained += 1

    def _on_step(self) -> bool:
        return True


def _sizes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def fill(buffer: Any, n_rows: int) -> None:
    """
    Fill a replay buffer with made-up transitions.

    :param buffer: A replay buffer.
    :param n_rows: How many made-up transitions it gets.
    """
    rows = (buffer.pos + np.arange(n_rows)) % buffer.buffer_size
    for name in ("observations", "next_observations", "actions", "rewards"):
        array = getattr(buffer, name)
        array[rows] = np.random.default_rng(n_rows).standard_normal((n_rows, *array.shape[1:]), dtype=np.float32)
    buffer.full = buffer.full or buffer.pos + n_rows >= buffer.buffer_size
    buffer.pos = (buffer.pos + n_rows) % buffer.buffer_size


def measure(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    """
    Measure what a checkpoint costs.

    :param arguments: Parsed by :func:`add_arguments`.
    :param size: Transitions of the buffer; it is full.
    :param folder: An empty folder.
    :return: A row of the table.
    :raises ValueError: If there is nothing to measure.
    """
    every, steps = arguments.every, arguments.steps
    if not 1 < steps < every:
        raise ValueError(f"`--steps` must be more than 1 and less than `--every` {every}, got {steps}")
    policy_kwargs = dict(net_arch=arguments.net) | ({} if arguments.sparsity is None else dict(sparsity=arguments.sparsity))
    name = "MlpPolicy" if arguments.sparsity is None else "SparseMlpPolicy"
    kwargs: dict[str, Any] = dict(policy_kwargs=policy_kwargs, buffer_size=size, learning_starts=0, device="cpu", seed=0)
    model = TD3(name, arguments.env, train_freq=1, gradient_steps=1, **kwargs)
    assert model.replay_buffer is not None
    fill(model.replay_buffer, size)
    skip, checkpoint = _Skip(every, steps, folder), RunCheckpoint(every, folder=folder)
    model.learn((arguments.rounds + 1) * every + 1, callback=[skip, checkpoint])
    skip.files.append(_sizes(folder))
    new = [
        sum(bytes_ for path, bytes_ in after.items() if path not in before)
        for before, after in zip(skip.files, skip.files[1:], strict=False)
    ]
    start = time.perf_counter()
    open_checkpoint(find_store(folder), make_vec_env(arguments.env), device="cpu", allow_pickle=False)
    reading = time.perf_counter() - start
    seconds, of_steps = median(checkpoint.seconds[1:]), median(skip.seconds) / steps * every
    return {
        "buffer": size,
        "first (s)": round(checkpoint.seconds[0], 2),
        "first (MB)": round(new[0] / 1e6, 1),
        "each (s)": round(seconds, 3),
        "each (MB)": round(median(new[1:]) / 1e6, 2),
        f"training of {every:,} steps (s of processor time)": round(of_steps, 1),
        "share (%)": round(100 * seconds / (seconds + of_steps), 2),
        "reading (s)": round(reading, 2),
    }


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    th.set_num_threads(arguments.threads)
    rows = []
    for size in arguments.buffer:
        folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
        try:
            rows.append(measure(arguments, size, folder))
        finally:
            shutil.rmtree(folder)
    kind = "dense" if arguments.sparsity is None else f"sparsity {arguments.sparsity:g}"
    note = (
        f"TD3 on {arguments.env}, {kind}, net {arguments.net}, a full buffer of so many transitions, a checkpoint every "
        f"{arguments.every:,} steps, medians of {arguments.rounds}; the first one writes the whole buffer"
    )
    show((note, rows), as_json=arguments.json)
