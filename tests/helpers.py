"""Small models of every algorithm x policy, and a watch over the invariants while they train."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sb3_sparse import sparse_policy
from sb3_sparse.nn.state_dict import revealed

OFF_POLICY = [TD3, DDPG, SAC, TQC, CrossQ, DQN, QRDQN]
ON_POLICY = [PPO, A2C, MaskablePPO, RecurrentPPO]
DISCRETE = (DQN, QRDQN, MaskablePPO)
ALGORITHMS = OFF_POLICY + ON_POLICY
KINDS = ["Mlp", "Cnn", "MultiInput"]
#: Every algorithm x policy that exists in stock SB3 and sb3-contrib
SUPPORTED = [(algorithm, kind) for algorithm in ALGORITHMS for kind in KINDS if not (algorithm is CrossQ and kind != "Mlp")]
SUPPORTED_IDS = [f"{algorithm.__name__}-{kind}" for algorithm, kind in SUPPORTED]
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)


class RandomEnv(gym.Env):
    """Random observations of any space, rewards that depend on the action, episodes of ten steps."""

    def __init__(self, kind: str = "Mlp", discrete: bool = False, n_inputs: int = 7) -> None:
        vector = spaces.Box(-1, 1, (n_inputs,), np.float32)
        self.observation_space: Any = {
            "Mlp": vector,
            "Cnn": IMAGE,
            "MultiInput": spaces.Dict({"image": IMAGE, "vector": vector}),
        }[kind]
        self.action_space: Any = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.n_steps >= 10, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(self.action_space.n, dtype=bool)


def policy_alias(algorithm: type[BaseAlgorithm], kind: str, *, sparse: bool = True) -> str:
    """``SparseMlpPolicy``, ``CnnLstmPolicy``, ..."""
    return f"{'Sparse' if sparse else ''}{kind}{'Lstm' if algorithm is RecurrentPPO else ''}Policy"


def make_model(
    algorithm: type[BaseAlgorithm],
    kind: str = "Mlp",
    *,
    sparse: bool = True,
    env: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """A small model of any algorithm; ``sparse=False`` gives its stock twin."""
    if env is None:
        env = RandomEnv(kind, discrete=algorithm in DISCRETE)
    policy_kwargs = {"net_arch": [16, 12], **(policy_kwargs or {})}
    defaults: dict[str, Any] = {"seed": 0, "device": "cpu"}
    if issubclass(algorithm, OffPolicyAlgorithm):
        defaults |= dict(learning_starts=20, batch_size=8, buffer_size=200, train_freq=2, gradient_steps=2)
    elif algorithm is A2C:
        defaults |= dict(n_steps=8)
    else:
        defaults |= dict(n_steps=16, batch_size=8, n_epochs=2)
    if algorithm is RecurrentPPO:
        policy_kwargs.setdefault("lstm_hidden_size", 8)
    if kind != "Mlp":
        size = {"features_dim": 24} if kind == "Cnn" else {"cnn_output_dim": 24}
        policy_kwargs.setdefault("features_extractor_kwargs", size)
    if algorithm in (DQN, QRDQN):
        defaults |= dict(target_update_interval=10, tau=0.3, max_grad_norm=1.0)
    return algorithm(policy_alias(algorithm, kind, sparse=sparse), env, policy_kwargs=policy_kwargs, **(defaults | kwargs))


def observations(model: BaseAlgorithm, n: int = 24) -> Any:
    """Random observations, always the same, of any space; the environment's random stream is left alone."""
    space: Any = copy.deepcopy(model.observation_space)
    space.seed(5)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


def same_actions(first: BaseAlgorithm, second: BaseAlgorithm, *, bits: bool = True) -> bool:
    """Whether two models act alike, to the last bit or (other engines add up in another order) nearly."""
    actions = [model.predict(observations(first), deterministic=True)[0] for model in (first, second)]
    return np.array_equal(*actions) if bits else np.allclose(*actions, atol=1e-5)


def assert_invariants(model: BaseAlgorithm) -> None:
    """All invariants hold, right now."""
    assert sparse_policy(model).sparsifier.violations() == []


@contextmanager
def watched(model: BaseAlgorithm, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """
    Check the invariants after every optimizer step, after every Polyak update and before every gradient clipping.

    :return: How often each was met, so that a test can tell that it has seen any.
    """
    import importlib

    met = {"step": 0, "polyak": 0, "clip": 0}
    sparsifier = sparse_policy(model).sparsifier

    def check(what: str) -> None:
        met[what] += 1
        assert sparsifier.violations() == [], f"after {what} number {met[what]}"

    handles = [optimizer.register_step_post_hook(lambda *_: check("step")) for optimizer in sparsifier.optimizers.values()]
    module: Any = importlib.import_module(type(model).train.__module__)
    if hasattr(module, "polyak_update"):
        stock_polyak = module.polyak_update

        def polyak_update(*args: Any) -> None:
            stock_polyak(*args)
            check("polyak")

        monkeypatch.setattr(module, "polyak_update", polyak_update)
    stock_clip = th.nn.utils.clip_grad_norm_

    def clip_grad_norm_(*args: Any, **kwargs: Any) -> th.Tensor:
        check("clip")
        return stock_clip(*args, **kwargs)

    monkeypatch.setattr(th.nn.utils, "clip_grad_norm_", clip_grad_norm_)
    yield met
    for handle in handles:
        handle.remove()
    monkeypatch.undo()


def start_training(model: BaseAlgorithm, callback: BaseCallback, total_timesteps: int) -> None:
    """Bring a callback to the start of a training in which the test itself makes the steps."""
    model.set_logger(Logger(None, []))
    model._total_timesteps = total_timesteps
    callback.init_callback(model)
    callback.on_training_start({}, {})


class shuffle_masks:
    """
    From now on, give every layer a new random mask of the same count, with new weights of 0.01, after every ``every``-th step
    of each optimizer: an updater at its wildest, in the middle of ``train()``.
    """

    def __init__(self, model: BaseAlgorithm, every: int = 3) -> None:
        self.sparsifier = sparse_policy(model).sparsifier
        self.every = every
        self.n_changes = 0
        self.handles = [
            optimizer.register_step_post_hook(lambda *_, name=name: self._change(name))
            for name, optimizer in self.sparsifier.optimizers.items()
        ]

    def _change(self, optimizer: str) -> None:
        if self.sparsifier.n_steps(optimizer) % self.every:
            return
        owned = {id(weight) for group in self.sparsifier.optimizers[optimizer].param_groups for weight in group["params"]}
        masks = {}
        for name, plan in self.sparsifier.plan.items():
            if id(self.sparsifier.layers[name].weight) in owned:
                scores = th.rand(plan.info.shape, generator=self.sparsifier.next_generator())
                masks[name] = plan.pattern.select(scores, plan.budget)
        self.sparsifier.set_masks(masks, {name: th.full(mask.shape, 0.01) for name, mask in masks.items()})
        self.n_changes += 1

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def equal_state(first: BaseAlgorithm, second: BaseAlgorithm, *, ignore_masks: bool = False) -> bool:
    """Whether two models hold bit-identical parameters, buffers and optimizer states."""

    def flat(value: Any, path: str, out: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value, dict):
            for key, item in revealed(value).items():
                flat(item, f"{path}/{key}", out)
        elif isinstance(value, list):
            for key, item in enumerate(value):
                flat(item, f"{path}/{key}", out)
        else:
            out[path] = value
        return out

    states = [flat(model.get_parameters(), "", {}) for model in (first, second)]
    if ignore_masks:
        states = [
            {key: value for key, value in state.items() if not key.endswith("weight_mask") and "/sparsifier." not in key}
            for state in states
        ]
    if states[0].keys() != states[1].keys():
        return False
    return all(
        th.equal(value, states[1][key]) if isinstance(value, th.Tensor) else value == states[1][key]
        for key, value in states[0].items()
    )


def save_and_load(model: Any, folder: Path) -> Any:
    """The model as it comes out of a file, on the same environment; equal to the last bit."""
    model.save(folder / "model.zip")
    loaded = type(model).load(folder / "model.zip", env=model.get_env())
    assert equal_state(model, loaded)
    assert_invariants(loaded)
    return loaded


def train_on_data_of(other: Any, model: Any, gradient_steps: int = 8) -> None:
    """Gradient steps on another model's data, from a random state that is always the same."""
    off_policy = isinstance(model, OffPolicyAlgorithm)
    buffer = "replay_buffer" if off_policy else "rollout_buffer"
    setattr(model, buffer, getattr(other, buffer))
    set_random_seed(3)
    model.train(gradient_steps=gradient_steps, batch_size=8) if off_policy else model.train()


def assert_goes_on_exactly(
    model: Any,
    callbacks: Sequence[BaseCallback],
    folder: Path,
    *,
    timesteps: Sequence[int] = (),
    total_timesteps: int = 100,
    gradient_steps: int = 8,
) -> Any:
    """
    A model that was saved and loaded in mid-training goes on as the one that was not, bit for bit.

    :param model: The model.
    :param callbacks: Its callback, and that of the loaded one.
    :param folder: For the file.
    :param timesteps: Environment steps at which both train; none: where they are.
    :param total_timesteps: Of the whole training.
    :param gradient_steps: At each of them, off policy.
    :return: The loaded model.
    """
    loaded = save_and_load(model, folder)
    for one, callback in zip((model, loaded), callbacks, strict=True):
        start_training(one, callback, total_timesteps)
        for timestep in timesteps or (model.num_timesteps,):
            one.num_timesteps = timestep
            callback.on_step()
            train_on_data_of(model, one, gradient_steps)
        callback.on_training_end()
    assert equal_state(model, loaded)
    return loaded


def assert_refused(command, arguments, said, capsys):
    """A command answers a mistake in one line, with exit code 2, and the working directory stays as it is."""

    def contents():
        return {path: path.read_bytes() if path.is_file() else None for path in Path.cwd().rglob("*")}

    before = contents()
    with pytest.raises(SystemExit) as caught:
        command(arguments)
    answer = capsys.readouterr().err
    assert caught.value.code == 2
    assert said in answer
    assert len(answer.splitlines()) == 1
    assert contents() == before
