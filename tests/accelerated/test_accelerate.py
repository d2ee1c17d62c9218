"""Stock ``train()`` is the specification: the same random numbers, the same results but for rounding."""

from __future__ import annotations

import io
import pickle
import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import sb3_sparse
from sb3_sparse import DynamicNStepReplayBuffer, GradualPruning, MaskRefresh, QuantizationAware, RigL, accelerate
from sb3_sparse.engine import native
from tests.accelerated.twins import ROUNDING, assert_alike, close, copy_state, make_twins, step_both
from tests.helpers import RandomEnv, make_model

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")
ALGORITHMS = [TD3, DDPG, SAC, DQN]


def environments(algorithm: Any, n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: RandomEnv(discrete=algorithm is DQN)] * n_envs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.95])
def test_every_step_is_stocks(algorithm, sparsity):
    stock, twin = make_twins(algorithm, policy_kwargs=dict(sparsity=sparsity))
    for seed in range(40):
        step_both(stock, twin, seed)
        copy_state(stock, twin)
    assert twin.train.why_stock is None


class Mild(RandomEnv):
    """Its best action lies inside the range: where an actor saturates, the slope of its tanh is nothing but rounding."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, _, *ended = super().step(action)
        return (observation, -float(np.square(np.asarray(action) - 0.3).sum()), *ended)  # type: ignore[return-value]


@pytest.mark.expensive
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_thousands_of_steps(algorithm):
    stock, twin = make_twins(algorithm, n_steps=1000, env=Mild(discrete=algorithm is DQN), learning_rate=1e-4)
    for seed in range(3000):
        step_both(stock, twin, seed)
        copy_state(stock, twin)
    assert twin.train.why_stock is None


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "tanh": (ALGORITHMS, dict(policy_kwargs=dict(activation_fn=nn.Tanh))),
    "one layer": ([TD3, SAC, DQN], dict(policy_kwargs=dict(net_arch=[24]))),
    "blocks": ([TD3, SAC], dict(policy_kwargs=dict(pattern="block:4x1", net_arch=[24, 16]))),
    "2:4": ([TD3, DQN], dict(policy_kwargs=dict(pattern="2:4", net_arch=[24, 16], sparsity=None))),
    "three critics": ([TD3, SAC], dict(policy_kwargs=dict(n_critics=3))),
    "batch of one": ([TD3, SAC, DQN], dict(batch_size=1)),
    "several panels": ([TD3, SAC, DQN], dict(batch_size=300)),
    "fixed entropy": ([SAC], dict(ent_coef=0.3)),
    "delay": ([TD3], dict(policy_delay=3)),
    "n steps": (ALGORITHMS, dict(n_steps=3)),
    "stock n steps": ([TD3], dict(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=2, gamma=0.9))),
    "dynamic": (ALGORITHMS, dict(replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=1))),
    "dynamic n steps": ([TD3, SAC], dict(replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3))),
    "memory": ([TD3], dict(replay_buffer_kwargs=dict(handle_timeout_termination=False), optimize_memory_usage=True)),
    "small clip": ([DQN], dict(max_grad_norm=1e-3)),
    "weight decay": ([TD3, SAC, DQN], dict(policy_kwargs=dict(optimizer_kwargs=dict(weight_decay=1e-2)))),
    "other betas": ([TD3, SAC], dict(policy_kwargs=dict(optimizer_kwargs=dict(betas=(0.4, 0.9), eps=1e-3)))),
    "double observations": ([TD3, SAC], {}),
}


@pytest.mark.parametrize(
    ("algorithm", "case"), [(algorithm, name) for name, (algorithms, _) in CASES.items() for algorithm in algorithms]
)
def test_arguments(algorithm, case):
    kwargs = deepcopy(CASES[case][1])
    if case == "double observations":
        env = RandomEnv()
        env.observation_space = type(env.observation_space)(-1, 1, (7,), np.float64)
        kwargs["env"] = env
    stock, twin = make_twins(algorithm, **kwargs)
    for seed in range(12):
        step_both(stock, twin, seed)
        copy_state(stock, twin)
    assert twin.train.why_stock is None


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_normalized_and_several_environments(algorithm, n_envs):
    stock, twin = make_twins(algorithm, env=environments(algorithm, n_envs), seed=None)
    if n_envs == 1:
        stock._vec_normalize_env = twin._vec_normalize_env = VecNormalize(environments(algorithm, 1))
        stock._vec_normalize_env.obs_rms.update(np.random.default_rng(0).normal(1, 3, (50, 7)))
    for seed in range(10):
        step_both(stock, twin, seed)
    assert twin.train.why_stock is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_several_gradient_steps(algorithm):
    stock, twin = make_twins(algorithm)
    for seed in range(5):
        step_both(stock, twin, seed, gradient_steps=4)
        copy_state(stock, twin)
    assert twin.train.why_stock is None


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.filterwarnings("ignore:accelerate")
def test_targets_of_sac_that_not_every_step_updates(interval):
    """Stock counts within one call of ``train()``; some of its steps are made by stock alone."""
    stock, twin = make_twins(SAC, target_update_interval=interval, tau=0.5)
    for seed in range(4):
        step_both(stock, twin, seed, gradient_steps=5)
        copy_state(stock, twin)
    assert twin.train.why_stock is None
    for model in (stock, twin):
        callback = RigL(every=2, drop_fraction=0.3)
        callback.init_callback(model)
        model._total_timesteps, model.num_timesteps, model.learning_starts = 200, 10, 0
        callback.on_training_start({}, {})
    for seed in range(4):
        step_both(stock, twin, seed, gradient_steps=5)
        copy_state(stock, twin)
    twin.actor.latent_pi[0].register_forward_hook(lambda *_: None)
    step_both(stock, twin, 5, gradient_steps=5)
    assert twin.train.why_stock is not None
    assert twin.target_update_interval == interval


def test_nobody_sees_what_stands_in_for_the_interval():
    seen, file = [], io.BytesIO()
    stock, twin = make_twins(SAC, target_update_interval=2)
    for model in (stock, twin):

        def look(*_: Any, model: Any = model) -> None:
            seen.append(model.target_update_interval)
            assert type(pickle.loads(pickle.dumps(model.target_update_interval))) is int
            if len(seen) % 5 == 3:
                model.target_update_interval = 3

        model.actor.optimizer.register_step_post_hook(look)
    with pytest.warns(UserWarning, match="hooks"):
        step_both(stock, twin, 0, gradient_steps=5)
    assert seen == [2, 2, 2, 3, 3] * 2
    assert type(twin.target_update_interval) is int
    twin.save(file)
    file.seek(0)
    assert type(SAC.load(file).target_update_interval) is int


def test_gradients_are_stocks():
    stock, twin = make_twins(TD3)
    for seed in range(4):
        step_both(stock, twin, seed)
        mine = {name: parameter.grad for name, parameter in stock.policy.named_parameters()}
        others = {name: parameter.grad for name, parameter in twin.policy.named_parameters()}
        for name, gradient in mine.items():
            assert (gradient is None) == (others[name] is None), name
            if gradient is not None:
                assert close(gradient, others[name], ROUNDING, 0.1 if gradient.numel() == 1 else 1e-7), name


def test_writes_leave_the_versions_that_stocks_leave():
    """A graph that was made before a step and is used after it is refused, or not, as after a stock step."""
    stock, twin = make_twins(TD3, policy_delay=1)
    found = []
    for model in (stock, twin):
        before = {name: parameter._version for name, parameter in model.policy.named_parameters()}
        value = model.critic(th.zeros(5, 7), th.zeros(5, 2))[0].sum()
        model.train(1, 8)
        found.append({name for name, parameter in model.policy.named_parameters() if parameter._version > before[name]})
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()
    assert found[0] == found[1] == {name for name in before if "target" not in name}


# --- Updaters ---


UPDATERS = {
    "SET": lambda: sb3_sparse.SET(every=5, drop_fraction=0.3),
    "RigL": lambda: RigL(every=5, drop_fraction=0.3),
    "RigL that skips": lambda: RigL(every=4, drop_fraction=0.3, skip_step=True),
    "SET, own targets": lambda: sb3_sparse.SET(every=5, drop_fraction=0.3, target="own_topk"),
    "RigL, own targets": lambda: RigL(every=4, drop_fraction=0.3, skip_step=True, target="own_topk"),
    "pruning": lambda: GradualPruning(final_sparsity=0.9, start=0.0, stop=1.0, updates=10),
}


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("gradient_steps", [1, 4])
def test_updaters(algorithm, updater, gradient_steps):
    """Topology updates happen at the same steps, with the same masks, and the steps between are native."""
    stock, twin = make_twins(algorithm)
    callbacks = []
    for model in (stock, twin):
        callback = UPDATERS[updater]()
        callback.init_callback(model)
        model._total_timesteps, model.num_timesteps, model.learning_starts = 200, 10, 0
        callback.on_training_start({}, {})
        callbacks.append(callback)
    changes = 0
    for seed in range(24 // gradient_steps):
        for model in (stock, twin):
            model.num_timesteps += 8 * gradient_steps
        before = {name: layer.weight_mask.clone() for name, layer in stock.policy.sparsifier.layers.items()}
        step_both(stock, twin, seed, gradient_steps)
        for name, layer in stock.policy.sparsifier.layers.items():
            assert th.equal(layer.weight_mask, twin.policy.sparsifier.layers[name].weight_mask), (seed, name)
            others = twin.policy.sparsifier.targets[name]
            for mine, other in zip(stock.policy.sparsifier.targets[name], others, strict=True):
                assert th.equal(mine.weight_mask, other.weight_mask), (seed, name)
            changes += int(not th.equal(before[name], layer.weight_mask))
        copy_state(stock, twin)
    assert changes > 0
    assert twin.train.why_stock is None
    assert [str(event) for event in callbacks[0].events] == [str(event) for event in callbacks[1].events]


def test_gradients_that_wait_are_cleared_though_the_optimizer_was_adopted_again():
    """RigL's event in the critic comes between an actor's native step and its next one, stock's."""
    _, twin = make_twins(SAC)
    twin.train(1, 8)
    optimizer, parameters = twin.actor.optimizer, list(twin.actor.parameters())
    parts = optimizer.parts
    twin.policy.sparsifier.adopt_optimizer("actor")
    assert [*optimizer.parts] == [*parts]
    type(optimizer).adopt(optimizer, [], [])  # nothing but its parameters leads to them now
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)
    # Nor if the kernels can read them no more
    _, twin = make_twins(SAC)
    twin.train(1, 8)
    weight = twin.actor.mu.weight
    weight.data = weight.data.clone().t().contiguous().t()
    assert twin.actor.optimizer.parts[1].survivors() is None
    twin.actor.optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in twin.actor.parameters())


@pytest.mark.parametrize("rule", ["masked_grad", "sr_ste"])
def test_mask_refresh(rule):
    stock, twin = make_twins(TD3, policy_kwargs=dict(pattern="2:4", sparsity=None, net_arch=[24, 16]))
    copy_state(twin, stock)  # both have been loaded: neither knows what pruned weights began with
    for model in (stock, twin):
        callback = MaskRefresh(every=2, rule=rule)
        callback.init_callback(model)
        model._total_timesteps, model.num_timesteps, model.learning_starts = 200, 10, 0
        callback.on_training_start({}, {})
    for seed in range(10):
        step_both(stock, twin, seed)


# --- What is left to stock ---


def reasons(twin: Any) -> str:
    """Train one step, and say why it was stock's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin.train(1, 8)
        twin.train(1, 8)
    said = [str(one.message) for one in caught if "accelerate" in str(one.message)]
    assert len(said) == 1, said
    assert twin.train.why_stock in said[0]
    return said[0]


def spoil_hook(model: Any) -> None:
    model.actor.mu[0].register_forward_hook(lambda *_: None)


def spoil_module_hook(model: Any) -> None:
    model.critic.register_forward_hook(lambda *_: None)


def spoil_parameter_hook(model: Any) -> None:
    model.critic.qf0[0].weight.register_hook(lambda gradient: gradient * 2)


def spoil_frozen(model: Any) -> None:
    model.actor.mu[0].weight.requires_grad_(False)


def spoil_optimizer(model: Any) -> None:
    model.actor.optimizer = th.optim.SGD(model.actor.parameters(), lr=0.1)


def spoil_optimizer_hook(model: Any) -> None:
    model.actor.optimizer.register_step_pre_hook(lambda *_: None)


def spoil_forward(model: Any) -> None:
    model.critic.q1_forward = lambda obs, actions: model.critic.qf1(th.cat([obs, actions], dim=1))


def spoil_layer(model: Any) -> None:
    model.actor.mu.insert(1, nn.LayerNorm(24))
    model.actor.optimizer.add_param_group({"params": list(model.actor.mu[1].parameters())})
    model.actor_target.mu.insert(1, nn.LayerNorm(24))


def spoil_weights(model: Any) -> None:
    weight = model.critic.qf0[0].weight
    with th.no_grad():
        weight.fill_(0.1)


def spoil_group(model: Any) -> None:
    model.critic.optimizer.add_param_group({"params": [nn.Parameter(th.zeros(3))]})


SPOILT = {name.removeprefix("spoil_"): value for name, value in globals().items() if name.startswith("spoil_")}


@pytest.mark.parametrize("what", SPOILT)
def test_whatever_is_unknown_is_stocks(what):
    stock, twin = make_twins(TD3)
    step_both(stock, twin, 0)
    for model in (stock, twin):
        SPOILT[what](model)
        if what == "optimizer":
            model.policy.sparsifier.attach({**model.policy.sparsifier.optimizers, "actor": model.actor.optimizer})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            step_both(stock, twin, seed)
    said = [str(one.message) for one in caught if "accelerate" in str(one.message)]
    assert len(said) == len(set(said)) >= 1
    assert twin.train.why_stock is not None


def spoil_flatten(model: Any) -> None:
    model.critic.features_extractor.flatten.register_forward_hook(lambda _module, _inputs, output: output * 0.5)


def spoil_features(model: Any) -> None:
    class Halved(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return super().forward(observations) * 0.5

    for network in (model.actor, model.critic, model.actor_target, model.critic_target):
        network.features_extractor = Halved(model.observation_space)


def spoil_taken_out(model: Any) -> None:
    optimizer = model.critic.optimizer
    taken = optimizer.param_groups[0]["params"].pop(0)
    optimizer.state.pop(taken, None)


def spoil_more_layers(model: Any) -> None:
    # Target updates go over them, though nothing trains them
    for network, value in ((model.critic, 1.0), (model.critic_target, 0.0)):
        network.more = nn.Linear(2, 2)
        nn.init.constant_(network.more.weight, value)
        nn.init.constant_(network.more.bias, value)


def test_hook_that_is_gone_is_forgotten():
    stock, twin = make_twins(TD3)
    handle = twin.actor.mu[0].register_forward_hook(lambda *_: None)
    assert "hooks" in reasons(twin)
    handle.remove()
    copy_state(stock, twin)
    step_both(stock, twin, 1)


@pytest.mark.parametrize("algorithm", [TD3, DQN])
def test_values_that_are_not_finite(algorithm):
    """The step is stock's, with the batch that was drawn."""
    results = []
    for accelerated in (False, True):
        _, model = make_twins(algorithm, accelerated=accelerated)
        model.replay_buffer.observations[:] = np.inf
        th.manual_seed(0)
        np.random.seed(0)
        if accelerated:
            with pytest.warns(UserWarning, match="not finite"):
                model.train(1, 37)
        else:
            model.train(1, 37)
        results.append((model.get_parameters()["policy"], np.random.rand(), float(th.rand(1))))
    (policy, *drawn), (other, *also) = results
    assert drawn == also
    assert all(th.equal(value.nan_to_num(7), other[key].nan_to_num(7)) for key, value in policy.items())
    assert any(value.isnan().any() for value in policy.values())


@pytest.fixture
def validated(monkeypatch):
    """Distributions look at their arguments, as at first: torch.compile lets all of them stop that, for good."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)


@pytest.mark.usefixtures("validated")
def test_a_refusal_of_stocks_is_one_here_too():
    _, twin = make_twins(SAC)
    twin.replay_buffer.observations[:] = np.inf
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(ValueError, match="Expected parameter loc"):
        twin.train(1, 8)


def test_quantized_networks_are_stocks():
    model = accelerate(make_model(SAC, policy_kwargs=dict(sparsity=0.5, net_arch=[16, 16]), learning_starts=10, seed=0))
    with pytest.warns(UserWarning, match="quantized"):
        model.learn(120, callback=QuantizationAware(start=0.5))
    assert model.policy.sparsifier.violations() == []


def test_in_the_modes_of_torch():
    stock, twin = make_twins(SAC)
    with th.autocast("cpu"), pytest.warns(UserWarning, match="autocast"):
        step_both(stock, twin, 0)


def test_sde_and_dict_observations_are_stocks():
    for kwargs, said in ((dict(use_sde=True), "use_sde"), (dict(kind="MultiInput"), "observations are")):
        model = accelerate(make_model(SAC, **kwargs, learning_starts=10))
        with pytest.warns(UserWarning, match=said):
            model.learn(15)


def changed_samples(change: Any) -> Any:
    """A change of a model: its buffer's samples are others."""

    def apply(model: Any) -> None:
        stock = model.replay_buffer._get_samples
        model.replay_buffer._get_samples = lambda rows, env=None: change(stock(rows, env))

    return apply


def each(function: Any) -> Any:
    return lambda samples: ReplayBufferSamples(*[None if value is None else function(value) for value in samples])


SAMPLES = {
    "more": each(lambda value: th.cat([value, value])),
    "fewer": each(lambda value: value[: len(value) // 2]),
    "other dtype": lambda samples: samples._replace(next_observations=samples.next_observations.bfloat16()),
    "one discount": lambda samples: samples._replace(discounts=0.9),
    "strides": each(lambda value: th.stack([value, value], -1)[..., 0]),
}


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@pytest.mark.parametrize("what", SAMPLES)
@pytest.mark.filterwarnings("ignore:accelerate")
def test_buffers_that_give_what_they_like(algorithm, what):
    stock, twin = make_twins(algorithm)
    for model in (stock, twin):
        changed_samples(SAMPLES[what])(model)
    for seed in range(3):
        step_both(stock, twin, seed)
    assert (twin.train.why_stock is None) == (what == "strides")


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
def test_torchs_default_dtype_is_nobodys_business(algorithm):
    stock, twin = make_twins(algorithm)
    th.set_default_dtype(th.float64)
    try:
        for seed in range(3):
            step_both(stock, twin, seed)
    finally:
        th.set_default_dtype(th.float32)
    assert twin.train.why_stock is None


def another_epsilon(model: Any) -> None:
    model.actor.action_dist.epsilon = 1e-2


def another_distribution(model: Any) -> None:
    class Doubled(SquashedDiagGaussianDistribution):
        def log_prob(self, actions: th.Tensor, gaussian_actions: th.Tensor | None = None) -> th.Tensor:
            return super().log_prob(actions, gaussian_actions) * 2

    model.actor.action_dist = Doubled(2)


@pytest.mark.parametrize("change", [another_epsilon, another_distribution])
def test_other_distributions_are_stocks(change):
    stock, twin = make_twins(SAC)
    step_both(stock, twin, 0)
    for model in (stock, twin):
        change(model)
    with pytest.warns(UserWarning, match="actions come from"):
        step_both(stock, twin, 1)
    step_both(stock, twin, 2)


@pytest.mark.usefixtures("validated")
def test_what_stock_sac_refuses():
    """Actions that are not numbers, and a coefficient that cannot be learnt."""
    _, twin = make_twins(SAC)
    with th.no_grad():
        twin.actor.latent_pi[0].bias[0] = np.nan
    with pytest.raises(ValueError, match="Expected parameter loc"):
        twin.train(1, 8)
    _, twin = make_twins(SAC)
    twin.log_ent_coef.requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"), pytest.raises(RuntimeError, match="does not require grad"):
        twin.train(1, 8)


def test_gradients_of_targets_count_in_the_norm():
    stock, twin = make_twins(DQN, max_grad_norm=0.01)
    for model in (stock, twin):
        for parameter in model.q_net_target.parameters():
            parameter.grad = th.full_like(parameter, 5.0)
    step_both(stock, twin, 0)


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
def test_the_default_batch_is_stocks(algorithm):
    stock, twin = make_twins(algorithm)
    for model in (stock, twin):
        th.manual_seed(1)
        np.random.seed(1)
        model.train(gradient_steps=1)
    assert_alike(stock, twin)


# --- The model stays what it was ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_loaded_and_copied(algorithm):
    stock, twin = make_twins(algorithm)
    step_both(stock, twin, 0)
    file = io.BytesIO()
    twin.save(file)
    file.seek(0)
    loaded = algorithm.load(file, env=twin.env)
    assert "train" not in vars(loaded)
    assert type(loaded) is type(twin) is algorithm
    loaded.set_logger(deepcopy(twin.logger))
    loaded.replay_buffer = twin.replay_buffer
    for copied in (deepcopy(twin), accelerate(loaded)):
        step_both(deepcopy(stock), copied, 1)
        assert copied.train.why_stock is None


def test_learning_gives_the_same_agent_twice():
    parameters = []
    for _ in range(2):
        model = accelerate(make_model(SAC, policy_kwargs=dict(sparsity=0.8, net_arch=[16, 16]), learning_starts=10, seed=5))
        model.learn(60)
        parameters.append(model.get_parameters()["policy"])
    assert all(th.equal(value, parameters[1][key]) for key, value in parameters[0].items())


def test_threads_do_not_change_a_bit():
    parameters = []
    for n_threads in (1, 2):
        _, twin = make_twins(SAC, batch_size=300)
        th.set_num_threads(n_threads)
        try:
            for seed in range(4):
                th.manual_seed(seed)
                np.random.seed(seed)
                twin.train(1, 300)
        finally:
            th.set_num_threads(1)
        parameters.append(twin.get_parameters()["policy"])
    assert all(th.equal(value, parameters[1][key]) for key, value in parameters[0].items())


def test_refusals():
    with pytest.raises(TypeError, match="`model` is a PPO; accelerate"):
        accelerate(make_model(PPO))
    with pytest.raises(TypeError, match="not sparse"):
        accelerate(make_model(TD3, sparse=False))

    class Mine(TD3):
        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            """Of one's own."""

    with pytest.raises(TypeError, match="`model` is a Mine"):
        accelerate(make_model(Mine))
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    model.train = lambda gradient_steps, batch_size=100: None
    with pytest.raises(TypeError, match=r"has a train\(\) of its own"):
        accelerate(model)


def test_twice_is_once():
    _, twin = make_twins(TD3)
    train = twin.train
    assert accelerate(twin) is twin
    assert twin.train is train


def test_callback():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5), learning_starts=10)
    model.learn(20, callback=sb3_sparse.Accelerate())
    assert model.train.why_stock is None
    assert "train" in vars(model)
