"""NaN and infinity in observations, rewards, gradients and weights: the training stops and says where, or goes on if asked."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse import SET, GradualPruning, MaskRefresh, RigL, sparse_policy
from sb3_sparse.callbacks.finite import NonFiniteError, check_environment, looks_finite
from tests.helpers import RandomEnv, assert_invariants, make_model, start_training

UPDATERS = {
    "SET": (lambda **kwargs: SET(3, 0.3, **kwargs), {}),
    "RigL": (lambda **kwargs: RigL(3, 0.3, **kwargs), {}),
    "RigL-skip": (lambda **kwargs: RigL(3, 0.3, skip_step=True, **kwargs), {}),
    "RigL-2:4": (lambda **kwargs: RigL(3, 0.3, **kwargs), {"pattern": "2:4"}),
    "SET-block": (lambda **kwargs: SET(3, 0.3, **kwargs), {"pattern": "block:2x2", "sparsity": 0.5}),
    "MaskRefresh": (lambda **kwargs: MaskRefresh(3, **kwargs), {"pattern": "2:4"}),
    "MaskRefresh-ste": (lambda **kwargs: MaskRefresh(3, "ste", **kwargs), {"pattern": "2:4"}),
    "GradualPruning": (lambda **kwargs: GradualPruning(0.9, 0, 60, updates=20, **kwargs), {"sparsity": 0.3}),
}


class BadEnv(RandomEnv):
    """Gives one bad observation or reward, at its ``when``-th step."""

    def __init__(self, what, value, when=30, kind="Mlp", discrete=False):
        super().__init__(kind, discrete)
        self.what, self.value, self.when, self.total = what, value, when, 0

    def step(self, action):
        observation, reward, *rest = super().step(np.nan_to_num(action) if self.what != "nothing" else action)
        self.total += 1
        if self.total == self.when:
            if self.what == "reward":
                reward = self.value
            else:
                part = observation["vector"] if isinstance(observation, dict) else observation
                part[2] = self.value
        return observation, reward, *rest


class Break(BaseCallback):
    """Writes a bad value into a weight or a bias, or into a gradient at the next backward pass."""

    def __init__(self, what, layer, value=math.nan, timestep=40):
        super().__init__()
        self.what, self.layer, self.value, self.timestep = what, layer, value, timestep

    def _on_step(self):
        if self.num_timesteps == self.timestep:
            layer = sparse_policy(self.model).sparsifier.layers[self.layer]
            if self.what == "gradient":
                self.handle = layer.weight.register_hook(self._break)
            else:
                with th.no_grad():
                    if self.what == "weight":
                        layer.weight[layer.weight_mask] = self.value
                    else:
                        layer.bias[0] = self.value
        return True

    def _break(self, gradient):
        self.handle.remove()
        return gradient.index_fill(1, th.tensor([0]), self.value)


def model_of(name, algorithm=TD3, **kwargs):
    policy_kwargs = {"net_arch": [16, 16], **(UPDATERS[name][1] or {"sparsity": 0.6})}
    return make_model(algorithm, policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["observation", "last observation", "reward"])
@pytest.mark.parametrize(("algorithm", "kind"), [(TD3, "Mlp"), (DQN, "Mlp"), (PPO, "Mlp"), (SAC, "MultiInput")])
def test_what_environments_give(algorithm, kind, what, value):
    # Episodes have ten steps
    what, when = ("observation", 30) if what == "last observation" else (what, 27)
    env = BadEnv(what, value, when, kind, discrete=algorithm is DQN)
    model = make_model(algorithm, kind, env=env, policy_kwargs=dict(sparsity=0.6))
    name = "observation 'vector'" if kind == "MultiInput" and what == "observation" else what
    with pytest.raises(NonFiniteError, match=f"the {name} that environment 0 gave at environment step {when} is not finite"):
        model.learn(60, callback=SET(3, 0.3))
    assert model.num_timesteps == when
    assert_invariants(model)


def test_images_and_missing_values_are_passed_over():
    check_environment({}, 1)
    check_environment({"new_obs": np.zeros((2, 4, 4), np.uint8), "rewards": np.zeros(2)}, 1)
    with pytest.raises(NonFiniteError, match=r"reward that environment 1 gave at environment step 7 is not finite: .*nan"):
        check_environment({"new_obs": None, "rewards": np.array([0.0, np.nan])}, 7)


@pytest.mark.parametrize(("algorithm", "network"), [(TD3, "critic"), (SAC, "critic"), (PPO, "critic"), (DQN, "q_net")])
@pytest.mark.parametrize("what", ["weight", "bias", "gradient"])
@pytest.mark.parametrize("name", UPDATERS)
def test_networks(algorithm, network, name, what):
    model = model_of(name, algorithm)
    sparsifier, callback = sparse_policy(model).sparsifier, UPDATERS[name][0]()
    broken = sparsifier.networks[network][1]
    # PPO's networks share a loss
    named = "(actor|critic)" if algorithm is PPO else network
    with pytest.raises(NonFiniteError, match=rf"^network '{named}', layer '[.a-z0-9_]+', step \d+ of its opt") as caught:
        model.learn(100, callback=[Break(what, broken), callback])
    assert algorithm is PPO or str(caught.value).split("'")[3] in sparsifier.networks[network]
    # An update that comes before its step is refused before it, too
    n_steps = sparsifier.n_steps(sparsifier.optimizer_of(network))
    assert any(f"step {step} of its optimizer" in str(caught.value) for step in (n_steps, n_steps + 1))
    assert 40 <= model.num_timesteps <= 48


def test_the_step_is_the_first_one():
    """The weight is broken at environment step 40, that is after 20 gradient steps of the critic."""
    model = model_of("SET", train_freq=1, gradient_steps=1)
    with pytest.raises(NonFiniteError) as caught:
        model.learn(100, callback=[Break("weight", "critic.qf0.2"), SET(1000, 0.3)])
    message = str(caught.value)
    assert message.startswith("network 'critic', layer 'critic.qf0.0', step 20 of its optimizer: ")
    assert "of its gradient are NaN or infinite" in message
    assert 'pass `on_nonfinite`="ignore"' in message


def test_masks_are_not_chosen_by_gradients_that_are_not_finite():
    """A gradient that breaks nothing yet, because the step is skipped."""
    model = model_of("RigL-skip")
    sparsifier = model.policy.sparsifier
    for mode in ("raise", "ignore"):
        callback = RigL(1, 0.4, skip_step=True, networks="critic", on_nonfinite=mode)
        start_training(model, callback, 1000)
        model.num_timesteps, before = 100, sparsifier.masks()
        optimizer = sparsifier.optimizers["critic"]
        optimizer.zero_grad()
        loss = sum((layer.weight * th.randn(layer.weight.shape)).sum() for layer in sparsifier.layers.values())
        (loss + sparsifier.layers["critic.qf1.2"].weight[0, 0] * math.inf).backward()
        if mode == "raise":
            with pytest.raises(NonFiniteError, match=r"layer 'critic.qf1.2', step 1 of its .* of its gradient are NaN"):
                optimizer.step()
        else:
            optimizer.step()
        callback.on_training_end()
        changed = {name for name, mask in sparsifier.masks().items() if not th.equal(mask, before[name])}
        assert "critic.qf1.2" not in changed
        assert bool(changed) == (mode == "ignore")


@pytest.mark.parametrize("what", ["weight", "gradient"])
@pytest.mark.parametrize("name", UPDATERS)
def test_ignored_they_decide_nothing(name, what):
    """The training goes on, counts and patterns stay exact, and layers that are not finite keep their masks."""
    model = model_of(name, train_freq=1, gradient_steps=1)
    sparsifier, callback = model.policy.sparsifier, UPDATERS[name][0](on_nonfinite="ignore")
    planned, masks = dict(sparsifier.n_planned), {}

    class Watch(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 48:
                masks.update({key: mask for key, mask in sparsifier.masks().items() if key.startswith("critic")})
            return True

    model.learn(90, callback=[Break(what, "critic.qf0.2"), callback, Watch()])
    assert any(event.timestep > 48 for event in callback.events)
    assert not all(layer.weight.isfinite().all() for key, layer in sparsifier.layers.items() if key.startswith("critic"))
    for key, mask in masks.items():
        layer = sparsifier.layers[key]
        assert sparsifier.plan[key].pattern.is_legal(layer.weight_mask)
        assert layer.n_active == int(layer.weight_mask.sum()) == sparsifier.n_planned[key]
        if name == "GradualPruning":
            assert not (layer.weight_mask & ~mask).any()
        else:
            assert sparsifier.n_planned[key] == planned[key]
            assert layer.weight.isfinite().all() or th.equal(mask, layer.weight_mask)
    if name == "GradualPruning":
        assert sum(sparsifier.n_planned[key] for key in masks) == round(0.1 * sum(mask.numel() for mask in masks.values()))


def test_ignored_environments():
    model = make_model(DQN, env=BadEnv("reward", math.nan, discrete=True), policy_kwargs=dict(sparsity=0.6))
    model.learn(60, callback=SET(3, 0.3, on_nonfinite="ignore"))
    assert model.num_timesteps == 60


def test_large_numbers_are_finite():
    layers = {"a": th.nn.Linear(4, 4), "b": th.nn.Linear(4, 4, bias=False)}
    assert looks_finite(layers)
    layers["a"].bias.data.fill_(1e38)
    model = model_of("SET")
    with th.no_grad():
        model.policy.sparsifier.layers["critic.qf0.0"].bias.fill_(3e38)  # their sum overflows; they do not
    callback = SET(3, 0.3)
    start_training(model, callback, 100)
    callback._watch("critic", 1)


def test_bad_argument():
    for make in (lambda **kw: SET(3, 0.3, **kw), lambda **kw: MaskRefresh(3, **kw), lambda **kw: GradualPruning(0.9, **kw)):
        with pytest.raises(ValueError, match="`on_nonfinite` must be one of 'raise', 'ignore', got 'stop'"):
            make(on_nonfinite="stop")


def test_observations_with_infinite_bounds_are_no_trouble():
    env = RandomEnv()
    env.observation_space = spaces.Box(-np.inf, np.inf, (7,), np.float32)
    make_model(TD3, env=env, policy_kwargs=dict(sparsity=0.6)).learn(40, callback=RigL(3, 0.3))
