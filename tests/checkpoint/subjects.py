"""
Trainings that are killed and go on, and a hash of everything that they end with. As a program it trains in a folder, or goes
on there if it has been before, and writes what it ends with::

    python -m tests.checkpoint.subjects '{"algo": "td3", "method": "rlx2", "env": "Pendulum-v1", "steps": 400}' FOLDER
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

import sb3_sparse
from sb3_sparse import Accelerate, GradualPruning, QuantizationAware, RigL, RunCheckpoint, SparsityLogger
from sb3_sparse.utils.metadata import revealed
from sb3_sparse.zoo.presets import preset_arguments, preset_entry


@dataclass(frozen=True)
class Subject:
    """
    A training, small enough to be run many times.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param method: Preset, or one of those of :func:`_own_method`.
    :param steps: Environment steps.
    :param every: Steps between two checkpoints.
    :param n_envs: Number of environments.
    :param subprocesses: Whether they live in processes of their own.
    :param normalize: VecNormalize.
    :param frames: VecFrameStack, 0 for none.
    :param kwargs: Further arguments of the algorithm.
    :param accelerated: Whether it is accelerated.
    :param evaluate_every: Steps between two evaluations.
    :param seed: Seed.
    """

    algo: str
    env: str = "Pendulum-v1"
    method: str = "rlx2"
    steps: int = 400
    every: int = 50
    n_envs: int = 1
    subprocesses: bool = False
    normalize: bool = False
    frames: int = 0
    kwargs: dict[str, Any] = field(default_factory=dict)
    accelerated: bool = False
    evaluate_every: int = 120
    seed: int = 3

    def make_env(self, folder: Path | None) -> Any:
        """
        :param folder: Where its Monitor writes, None for nowhere.
        """
        vec_env_cls = SubprocVecEnv if self.subprocesses else DummyVecEnv
        monitor = None if folder is None else str(folder)
        env: Any = make_vec_env(self.env, self.n_envs, seed=self.seed, monitor_dir=monitor, vec_env_cls=vec_env_cls)
        if self.normalize:
            env = VecNormalize(env, training=folder is not None, norm_reward=folder is not None)
        return VecFrameStack(env, self.frames) if self.frames else env

    def arguments(self) -> tuple[dict[str, Any], list[BaseCallback]]:
        """Arguments of the algorithm, and callbacks."""
        if self.method in ("rlx2", "ds", "rnm", "compress", "static", "plad", "tar"):
            values = preset_arguments(_sooner(preset_entry(self.method, self.algo, self.env)), self.env)
            callbacks = values.pop("callback")
            del values["n_timesteps"]
            # As small as the rest
            if self.method != "ds":  # of which little would be left to prune
                values["policy_kwargs"]["net_arch"] = [32, 32]
        else:
            values, callbacks = _own_method(self.method)
        return {**values, **SMALL[self.algo], "seed": self.seed, "device": "cpu", **self.kwargs}, callbacks

    def callbacks(self, folder: Path, own: list[BaseCallback]) -> list[BaseCallback]:
        """
        :param folder: The run's folder.
        :param own: Those of the method.
        """
        evaluation = EvalCallback(
            self.make_env(None),
            n_eval_episodes=1,
            eval_freq=max(self.evaluate_every // self.n_envs, 1),
            log_path=str(folder),
            best_model_save_path=str(folder),
            verbose=0,
        )
        logger = [] if self.method == "stock" else [SparsityLogger()]
        first = [Accelerate()] if self.accelerated else []
        return [*first, *own, *logger, evaluation, RunCheckpoint(self.every, folder=folder)]

    def train(self, folder: Path, extra: list[BaseCallback] = ()) -> tuple[Any, list[BaseCallback]]:  # type: ignore[assignment]
        """Train from the beginning, or go on if a checkpoint is there."""
        arguments, own = self.arguments()
        env = self.make_env(folder)
        callbacks = [*extra, *self.callbacks(folder, own)]
        logger = configure(str(folder), ["csv"])
        if list(folder.glob("checkpoints/step-*")):
            return sb3_sparse.resume(folder, env, callbacks, logger=logger), callbacks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            model = ALGOS[self.algo](env=env, **arguments)
        model.set_logger(logger)
        kwargs = {"log_interval": 2} if self.algo in ("ppo", "a2c", "ppo_lstm") else {}
        model.learn(self.steps, callback=callbacks, **kwargs)
        return model, callbacks


#: What a preset's callbacks do in a training of a few hundred steps.
_SOONER: dict[str, dict[str, Any]] = {
    "RigL": dict(every=20),
    "SET": dict(every=20),
    "MaskRefresh": dict(every=15),
    "ReplayReset": dict(every=70),
    "Revival": dict(start=110),
    "DelayedNStep": dict(delay=150),
    "DynamicReplayCapacity": dict(every=40, n_oldest=40, min_size=60, threshold=0.002),
}


def _sooner(entry: dict[str, Any]) -> dict[str, Any]:
    for name, kwargs in [one for written in entry["callback"] if isinstance(written, dict) for one in written.items()]:
        kwargs.update(_SOONER.get(name.rpartition(".")[2], {}))
    entry["callback"] = [one for one in entry["callback"] if one != "sb3_sparse.SparsityLogger"]
    return entry


_OFF_POLICY = dict(learning_starts=60, buffer_size=300, batch_size=16, train_freq=1, gradient_steps=1)
_ON_POLICY = dict(n_steps=32, batch_size=16, n_epochs=2)
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("td3", "sac", "ddpg", "tqc", "dqn", "qrdqn"), _OFF_POLICY),
    "ppo": _ON_POLICY,
    "a2c": dict(n_steps=16),
    "ppo_lstm": _ON_POLICY,
}


def _own_method(name: str) -> tuple[dict[str, Any], list[BaseCallback]]:
    kwargs = dict(net_arch=[24, 16], sparsity=0.6)
    policy = {"policy": "SparseMlpPolicy", "policy_kwargs": kwargs}
    if name == "rigl":
        return policy, [RigL(every=7, drop_fraction=0.3, verbose=0)]
    if name == "lstm":
        return {"policy": "SparseMlpLstmPolicy", "policy_kwargs": {**kwargs, "lstm_hidden_size": 8}}, [
            RigL(every=7, drop_fraction=0.3)
        ]
    if name == "sde":
        return {**policy, "use_sde": True}, [RigL(every=7, drop_fraction=0.3)]
    if name == "noise":
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))
        return {**policy, "action_noise": noise}, [RigL(every=7, drop_fraction=0.3)]
    if name == "prune and quantize":
        # As the paper's: pruned from a fifth to four fifths of the training, quantized for its last sixth
        dense = {"policy": "SparseMlpPolicy", "policy_kwargs": {**kwargs, "sparsity": 0.0}}
        return dense, [GradualPruning(0.8, updates=10), QuantizationAware()]
    assert name == "stock"
    return {"policy": "MlpPolicy", "policy_kwargs": dict(net_arch=[24, 16])}, []


# --- Everything a training ends with ---


def _digest(value: Any) -> str:
    """Hash of numbers, text and containers of these, to the bit."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, th.Tensor):
            item = item.detach().cpu().numpy()
        if isinstance(item, np.ndarray) and not item.dtype.hasobject:
            digest.update(f"{item.dtype} {item.shape}".encode() + np.ascontiguousarray(item).tobytes())
        elif isinstance(item, dict):
            for key, part in item.items():
                digest.update(f"{key}:".encode())
                add(part)
        elif isinstance(item, (list, tuple)) or hasattr(item, "maxlen"):
            digest.update(b"[")
            for part in item:
                add(part)
            digest.update(b"]")
        else:
            digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()[:16]


def _without_times(infos: Any) -> list[Any]:
    return [{key: value for key, value in info.items() if key != "t"} for info in infos]


def _table(file: Path) -> list[list[str]]:
    """Rows of a CSV file but for columns with times, with what they are called."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.reader(lines))
    kept = [index for index, name in enumerate(rows[0]) if name != "t" and name not in ("time/fps", "time/time_elapsed")]
    # The order of a set of strings, in which SB3 writes columns, is another in every process
    kept.sort(key=lambda index: rows[0][index])
    return [[(row[index] if index < len(row) else "") for index in kept] for row in rows]


def everything(model: Any, callbacks: list[BaseCallback], folder: Path) -> dict[str, str]:
    """
    :param model: A model at the end of its training.
    :param callbacks: Its callbacks.
    :param folder: The run's folder.
    :return: A hash of everything there is, by what it is. The model is used up.
    """
    found: dict[str, Any] = {}
    for part, state in model.get_parameters().items():
        flat = revealed(state) if "param_groups" not in state else {"groups": state["param_groups"], **state["state"]}
        found |= {f"{part}/{name}": value for name, value in flat.items()}
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "_last_obs", "_last_episode_starts"):
        found[name] = getattr(model, name, None)
    found["_current_progress_remaining"] = model._current_progress_remaining
    found["episodes"] = _without_times(model.ep_info_buffer)
    for name in ("log_ent_coef", "exploration_rate", "_last_lstm_states"):
        found[name] = getattr(model, name, None)
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name, value in vars(buffer).items():
            if isinstance(value, (np.ndarray, dict, int, bool)) and name not in ("observation_space", "action_space"):
                found[f"buffer/{name}"] = value
    for callback in callbacks:
        others = {
            "callbacks",
            "seconds",
            "_last_time",
            "_written_step",
            "_n_loads",
            *getattr(callback, "not_in_checkpoints", ()),
        }
        for name, value in vars(callback).items():
            if isinstance(value, (int, float, list)) and name not in others:
                found[f"{type(callback).__name__}/{name}"] = value
    normalized = model.get_vec_normalize_env()
    if normalized is not None:
        found["statistics"] = [vars(normalized.obs_rms), vars(normalized.ret_rms), normalized.returns, normalized.old_obs]
    found["logger"] = {key: value for key, value in sorted(model.logger.name_to_value.items()) if not key.startswith("time/")}
    for file in sorted(folder.glob("*.monitor.csv")):
        found[file.name] = _table(file)
    if (folder / "progress.csv").is_file() and (folder / "progress.csv").stat().st_size:
        found["progress.csv"] = _table(folder / "progress.csv")
    if (folder / "evaluations.npz").is_file():
        with np.load(folder / "evaluations.npz") as evaluations:
            found |= {f"evaluations/{name}": evaluations[name] for name in evaluations.files}
    # Whatever comes next
    found["draws"] = [random.random(), np.random.rand(3), th.rand(3), model.action_space.sample()]
    observations: Any = model._last_obs
    for step in range(40):
        actions, _ = model.predict(observations, deterministic=False)
        observations, rewards, dones, _ = model.env.step(actions)
        found[f"next/{step}"] = [actions, observations, rewards, dones]
    return {name: _digest(value) for name, value in found.items()}


def finish(subject: Subject, folder: Path) -> dict[str, str]:
    """Train, or go on, to the end; the hash of everything."""
    model, callbacks = subject.train(folder)
    result = everything(model, callbacks, folder)
    model.env.close()
    return result


def main() -> None:
    """The program."""
    th.set_num_threads(1)
    subject, folder = Subject(**json.loads(sys.argv[1])), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(finish(subject, folder)))


def command(subject: Subject, folder: Path) -> list[str]:
    """The command that runs a subject in a process of its own."""
    return [sys.executable, "-m", "tests.checkpoint.subjects", json.dumps(asdict(subject)), str(folder)]


if __name__ == "__main__":
    main()
