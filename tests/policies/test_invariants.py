"""
The invariants after every optimizer step and every target update, for every algorithm x policy, while masks change in the
middle of training.
"""

import copy
import sys

import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_sparse import sparse_policy
from sb3_sparse.engine import native
from tests.helpers import (
    ALGORITHMS,
    DISCRETE,
    OFF_POLICY,
    SUPPORTED,
    SUPPORTED_IDS,
    RandomEnv,
    assert_invariants,
    equal_state,
    make_model,
    shuffle_masks,
    watched,
)


@pytest.mark.parametrize(
    ("pattern", "engine"), [("unstructured", "native"), ("unstructured", "torch"), ("2:4", "native"), ("block:4x2", "native")]
)
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_step_of_every_algorithm_and_policy(algorithm, kind, pattern, engine, monkeypatch):
    if native.available():
        monkeypatch.setenv("SB3_SPARSE_ENGINE", engine)
    sparsity = None if pattern == "2:4" else 0.7
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=sparsity, pattern=pattern))
    shuffled = shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(48 if kind == "Mlp" else 32)
    assert met["step"] >= 4
    assert shuffled.n_changes >= 1
    # CrossQ has no target, on-policy algorithms neither
    assert (met["polyak"] > 0) == (algorithm in OFF_POLICY and algorithm is not CrossQ)
    assert (met["clip"] > 0) == (algorithm not in (TD3, DDPG, SAC, TQC, CrossQ))


@pytest.mark.parametrize("kind", ["Mlp", "Cnn"])
@pytest.mark.parametrize("algorithm", [TD3, SAC, DDPG, TQC, PPO, A2C, MaskablePPO, RecurrentPPO])
@pytest.mark.parametrize("share", [True, False])
def test_shared_and_separate_features_extractors(algorithm, kind, share, monkeypatch):
    if algorithm is RecurrentPPO and kind == "Mlp":
        pytest.skip("nothing to share")
    policy_kwargs = dict(sparsity=0.7, share_features_extractor=share)
    model = make_model(algorithm, kind, policy_kwargs=policy_kwargs)
    networks = set(sparse_policy(model).sparsifier.networks)
    assert networks == ({"actor", "critic", "features_extractor"} if share and kind == "Cnn" else {"actor", "critic"})
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(32)
    assert met["step"] >= 4


@pytest.mark.parametrize("enable_critic_lstm", [True, False])
def test_recurrent_critic_without_lstm(enable_critic_lstm, monkeypatch):
    policy_kwargs = dict(sparsity=0.7, enable_critic_lstm=enable_critic_lstm)
    model = make_model(RecurrentPPO, policy_kwargs=policy_kwargs)
    assert ("critic" in sparse_policy(model).sparsifier.layers) == (not enable_critic_lstm)
    with watched(model, monkeypatch):
        model.learn(32)
    assert type(model.policy.lstm_actor) is th.nn.LSTM


@pytest.mark.parametrize(
    ("optimizer_class", "optimizer_kwargs"),
    [
        (th.optim.AdamW, dict(weight_decay=0.1)),
        (th.optim.Adam, dict(fused=True, amsgrad=True)),
        (th.optim.Adam, dict(foreach=False, weight_decay=0.1)),
        (th.optim.SGD, dict(momentum=0.9, nesterov=True)),
        (th.optim.RMSprop, dict(momentum=0.5, centered=True)),
        (th.optim.Adagrad, dict(initial_accumulator_value=0.1)),
        (th.optim.NAdam, {}),
        (th.optim.Rprop, {}),
        (RMSpropTFLike, {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_optimizers(algorithm, optimizer_class, optimizer_kwargs, monkeypatch):
    policy_kwargs = dict(sparsity=0.7, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
    model = make_model(algorithm, policy_kwargs=policy_kwargs)
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(64)
    assert met["step"] >= 4
    assert any(optimizer.state for optimizer in sparse_policy(model).sparsifier.optimizers.values())


def test_an_optimizer_that_mixes_weights_is_projected():
    """Sparsity does not rest on elementwise optimizers: orthogonalised updates reach every position."""
    muon = getattr(th.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    sparsifier = model.policy.sparsifier
    weights = [layer.weight for name, layer in sparsifier.layers.items() if name.startswith("actor")]
    model.policy.actor.optimizer = muon(weights, lr=1e-2)
    sparsifier.attach({"actor": model.policy.actor.optimizer, "critic": model.policy.critic.optimizer})
    model.learn(64)
    assert sparsifier.n_steps("actor") > 0
    assert_invariants(model)


def test_attach_refuses_other_names():
    model = make_model(TD3)
    with pytest.raises(ValueError, match=r"must be named \['actor', 'critic'\], got \['actor'\]"):
        model.policy.sparsifier.attach({"actor": model.policy.actor.optimizer})


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_sparsity_zero_is_bit_identical_to_stock(algorithm, kind, auto_engine):
    models, streams = [], []
    for sparse in (False, True):
        model = make_model(algorithm, kind, sparse=sparse, policy_kwargs=dict(sparsity=0.0) if sparse else None, seed=7)
        model.learn(40)
        model.learn(20, reset_num_timesteps=False)
        models.append(model)
        streams.append(th.get_rng_state())
    assert equal_state(*models, ignore_masks=True)
    assert th.equal(*streams)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masks_leave_the_global_generator_alone(algorithm):
    states = []
    for sparse in (False, True):
        make_model(algorithm, sparse=sparse, seed=3)
        states.append(th.get_rng_state())
    assert th.equal(*states)


def test_same_seed_same_masks_other_seed_other_masks():
    def masks(**kwargs):
        policy_kwargs = dict(sparsity=0.8, **{key: value for key, value in kwargs.items() if key == "mask_seed"})
        model = make_model(TD3, seed=kwargs.get("seed", 0), policy_kwargs=policy_kwargs)
        return th.cat([mask.flatten() for mask in model.policy.sparsifier.masks().values()])

    assert th.equal(masks(seed=1), masks(seed=1))
    assert not th.equal(masks(seed=1), masks(seed=2))
    assert th.equal(masks(seed=1, mask_seed=5), masks(seed=2, mask_seed=5))
    assert not th.equal(masks(mask_seed=5), masks(mask_seed=6))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_same_training(algorithm):
    models = [make_model(algorithm, policy_kwargs=dict(sparsity=0.7), seed=5).learn(48) for _ in range(2)]
    assert equal_state(*models)


def test_magnitude_masks_keep_the_largest_initial_weights():
    stock = make_model(TD3, sparse=False, seed=4)
    sparse = make_model(TD3, policy_kwargs=dict(sparsity=0.7, initial_mask="magnitude"), seed=4)
    for name, layer in sparse.policy.sparsifier.layers.items():
        initial = stock.policy.get_submodule(name).weight.abs()
        if not layer.weight_mask.all():
            assert initial[layer.weight_mask].min() >= initial[~layer.weight_mask].max()


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_subprocess_environments(algorithm, monkeypatch):
    env = make_vec_env(
        RandomEnv,
        n_envs=2,
        env_kwargs=dict(discrete=algorithm in DISCRETE),
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs=dict(start_method="fork" if sys.platform == "linux" else "spawn"),
    )
    kwargs = {} if algorithm is PPO else dict(gradient_steps=-1)
    model = make_model(algorithm, env=env, policy_kwargs=dict(sparsity=0.7), **kwargs)
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(80)
    assert met["step"] >= 8
    env.close()


@pytest.mark.parametrize("algorithm", [TD3, SAC, QRDQN])
def test_episodic_training_and_continued_learning(algorithm, monkeypatch):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7), train_freq=(1, "episode"), gradient_steps=5)
    with watched(model, monkeypatch):
        model.learn(60)
    steps = dict(model.policy.sparsifier.named_buffers())
    before = {name: int(value) for name, value in steps.items() if name.startswith("n_steps")}
    with watched(model, monkeypatch):
        model.learn(40, reset_num_timesteps=False)
    after = {name: int(value) for name, value in model.policy.sparsifier.named_buffers() if name.startswith("n_steps")}
    assert all(after[name] > before[name] > 0 for name in before)


def test_step_counters_are_per_optimizer():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7), gradient_steps=4, train_freq=4)
    model.learn(60)
    critic, actor = model.policy.sparsifier.n_steps("critic"), model.policy.sparsifier.n_steps("actor")
    assert critic == model._n_updates
    assert actor == critic // model.policy_delay > 0


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_deepcopy_behaves_like_the_original(algorithm, kind, monkeypatch):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.7))
    model.learn(32)
    copied = copy.deepcopy(model.policy)
    original = {name: value.clone() for name, value in model.policy.state_dict().items()}
    # The copy's hooks work on the copy: a step with dense gradients keeps it sparse, and leaves the original alone
    for optimizer in copied.sparsifier.optimizers.values():
        optimizer.zero_grad()
    loss = sum(layer.weight.square().sum() + layer.weight.sum() for layer in copied.sparsifier.layers.values())
    loss.backward()
    for optimizer in copied.sparsifier.optimizers.values():
        optimizer.step()
    assert copied.sparsifier.violations() == []
    assert any((value != original[name]).any() for name, value in copied.state_dict().items() if name.endswith("weight"))
    assert all(th.equal(value, original[name]) for name, value in model.policy.state_dict().items())
    # ... and the original trains on
    with watched(model, monkeypatch) as met:
        model.learn(32, reset_num_timesteps=False)
    assert met["step"] > 0


def test_a_copied_network_alone_masks_its_gradients():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    actor = copy.deepcopy(model.policy.actor)
    optimizer = th.optim.Adam(actor.parameters(), lr=1e-2)
    actor(th.ones(4, 7)).square().sum().backward()
    optimizer.step()
    for layer, original in zip(actor.mu[::2], model.policy.actor.mu[::2], strict=True):
        assert th.equal(layer.weight_mask, original.weight_mask)
        assert not layer.weight[~layer.weight_mask].any()


def test_eval_callback_saves_a_consistent_best_model(tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    shuffle_masks(model)
    callback = EvalCallback(
        make_vec_env(RandomEnv), best_model_save_path=str(tmp_path), eval_freq=20, n_eval_episodes=1, verbose=0
    )
    model.learn(80, callback=callback)
    best = TD3.load(tmp_path / "best_model.zip")
    assert_invariants(best)


@pytest.mark.parametrize("dtype", [th.float64, th.bfloat16])
def test_to_dtype(dtype):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.learn(40)
    for optimizer in model.policy.sparsifier.optimizers.values():
        optimizer.zero_grad()
    policy = model.policy.to(dtype)
    for name, layer in policy.sparsifier.layers.items():
        assert layer.weight_mask.dtype == th.bool
        layer(th.ones(3, layer.in_features, dtype=dtype)).sum().backward()
        assert layer.weight.grad.dtype == dtype, name
    assert policy.sparsifier.violations() == []
    for optimizer in policy.sparsifier.optimizers.values():
        optimizer.state.clear()
        optimizer.step()
    assert policy.sparsifier.violations() == []
    policy.to(th.float32)
    for optimizer in policy.sparsifier.optimizers.values():
        optimizer.state.clear()  # its moments have the other dtype
    model.learn(20, reset_num_timesteps=False)
    assert_invariants(model)


@pytest.mark.parametrize(
    ("algorithm", "backend"),
    [(TD3, "aot_eager"), (PPO, "aot_eager"), pytest.param(SAC, "inductor", marks=pytest.mark.expensive)],
)
def test_compiled_policies(algorithm, backend, monkeypatch, tmp_path):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    if algorithm is PPO:
        model.policy = th.compile(model.policy, backend=backend)
        model.policy.evaluate_actions = th.compile(model.policy.evaluate_actions, backend=backend)
    else:
        model.policy.actor.forward = th.compile(model.policy.actor.forward, backend=backend)
        model.policy.critic.forward = th.compile(model.policy.critic.forward, backend=backend)
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(40)
    assert met["step"] >= 4
    if algorithm is PPO:
        model.save(tmp_path / "compiled.zip")
        assert_invariants(PPO.load(tmp_path / "compiled.zip"))


def test_device_move_keeps_the_invariants():
    if not th.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7), device="cuda")
    shuffle_masks(model)
    model.learn(60)
    assert_invariants(model)
    model.policy.to("cpu")
    assert_invariants(model)


# --- The one entry through which masks change ---


def small_sparsifier(**kwargs):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, **kwargs))
    model.learn(60)
    return model.policy.sparsifier


def moved_mask(sparsifier, name):
    """The layer's mask with its first position moved to its first hole."""
    mask = sparsifier.layers[name].weight_mask.clone()
    flat = mask.view(-1)
    dropped, grown = int(flat.nonzero()[0]), int((~flat).nonzero()[0])
    flat[dropped], flat[grown] = False, True
    return mask, dropped, grown


def test_set_masks_by_hand():
    sparsifier = small_sparsifier()
    name = "critic.qf0.2"
    layer, (target,) = sparsifier.layers[name], sparsifier.targets[name]
    optimizer = sparsifier.optimizers["critic"]
    mask, dropped, grown = moved_mask(sparsifier, name)
    kept = (mask & layer.weight_mask).view(-1)
    before, before_target = layer.weight.detach().clone().view(-1), target.weight.detach().clone().view(-1)
    moment = optimizer.state[layer.weight]["exp_avg_sq"].clone().view(-1)
    optimizer.state[layer.weight]["exp_avg"].view(-1)[grown] = 5.0  # as if something had kept it warm
    values = th.full_like(layer.weight, 0.25)
    sparsifier.set_masks({name: mask}, {name: values})
    weight = layer.weight.detach().view(-1)
    assert weight[dropped] == 0
    assert weight[grown] == 0.25
    assert th.equal(weight[kept], before[kept])
    assert target.weight.view(-1)[dropped] == target.weight.view(-1)[grown] == 0
    assert th.equal(target.weight.view(-1)[kept], before_target[kept])
    state = optimizer.state[layer.weight]
    assert state["exp_avg"].view(-1)[grown] == state["exp_avg_sq"].view(-1)[grown] == 0
    assert state["exp_avg"].view(-1)[dropped] == 0
    assert th.equal(state["exp_avg_sq"].view(-1)[kept], moment[kept])
    assert sparsifier.violations() == []


def test_moments_restart_at_the_optimizers_own_start():
    model = make_model(A2C, policy_kwargs=dict(sparsity=0.7, optimizer_class=RMSpropTFLike))
    model.learn(40)
    sparsifier = model.policy.sparsifier
    name = "mlp_extractor.policy_net.2"
    mask, _, grown = moved_mask(sparsifier, name)
    sparsifier.set_masks({name: mask})
    (optimizer,) = sparsifier.optimizers.values()
    assert isinstance(optimizer, RMSpropTFLike)
    assert optimizer.state[sparsifier.layers[name].weight]["square_avg"].view(-1)[grown] == 1.0


def test_a_shared_extractors_moments_restart_in_both_optimizers():
    model = make_model(TD3, "Cnn", policy_kwargs=dict(sparsity=0.7, share_features_extractor=True))
    model.learn(60)
    sparsifier = model.policy.sparsifier
    name = "actor.features_extractor.cnn.2"
    weight = sparsifier.layers[name].weight
    mask, _, grown = moved_mask(sparsifier, name)
    # Stock TD3 trains a shared extractor by the actor's loss alone, but both optimizers own it
    for optimizer in sparsifier.optimizers.values():
        optimizer.state[weight]["exp_avg"] = th.full_like(weight, 5.0)
    sparsifier.set_masks({name: mask})
    for optimizer in sparsifier.optimizers.values():
        assert optimizer.state[weight]["exp_avg"].view(-1)[grown] == 0


def test_replan():
    sparsifier = small_sparsifier()
    name = "actor.mu.2"
    fewer = sparsifier.layers[name].weight_mask.clone()
    fewer.view(-1)[fewer.view(-1).nonzero()[:3]] = False
    with pytest.raises(ValueError, match="pass replan=True"):
        sparsifier.set_masks({name: fewer})
    sparsifier.set_masks({name: fewer}, replan=True)
    assert sparsifier.n_planned[name] == int(fewer.sum())
    assert sparsifier.violations() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"actor.nu": m["actor.mu.2"]}, "unknown layer 'actor.nu'; the layers are: actor.mu.0"),
        (lambda m: {"actor.mu.2": m["actor.mu.2"].float()}, "must be bool of shape"),
        (lambda m: {"actor.mu.2": m["actor.mu.0"]}, "must be bool of shape"),
        (lambda m: {"actor.mu.0": ~m["actor.mu.0"]}, "is in `dense_layers`"),
        (lambda m: {"actor.mu.2": m["actor.mu.2"].T}, "breaks its pattern '2:4'"),
        (lambda m: {"actor.mu.2": m["actor.mu.2"] & False}, "has 0 positions, planned are"),
        (lambda m: {"actor.mu.2": m["actor.mu.2"], "critic.qf0.2": m["actor.mu.0"]}, "must be bool of shape"),
    ],
)
def test_bad_masks_change_nothing(change, message):
    model = make_model(TD3, policy_kwargs=dict(pattern="2:4", dense_layers="first", net_arch=[16, 16]))
    sparsifier = model.policy.sparsifier
    # Legal, but not when rows and columns change places
    sparsifier.set_masks({"actor.mu.2": th.tensor([False, False, True, True]).repeat(16, 4)})
    before = sparsifier.masks()
    with pytest.raises(ValueError, match=message):
        sparsifier.set_masks(change(sparsifier.masks()))
    assert all(th.equal(mask, before[name]) for name, mask in sparsifier.masks().items())


def test_grown_values_need_a_mask():
    sparsifier = small_sparsifier()
    with pytest.raises(ValueError, match=r"`grown_values` of layer 'actor.mu.2' needs a mask"):
        sparsifier.set_masks({}, {"actor.mu.2": th.zeros(12, 16)})


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    net_arch=st.lists(st.integers(4, 24), min_size=1, max_size=3),
    n_inputs=st.integers(4, 23),
    sparsity=st.floats(0.05, 0.9),
    pattern=st.sampled_from(["unstructured", "1:4", "2:4", "block:2x3", "block:4x1"]),
    distribution=st.sampled_from(["uniform", "er", "erk"]),
    initial_mask=st.sampled_from(["random", "magnitude"]),
    dense_layers=st.sampled_from([(), "first", "last"]),
    algorithm=st.sampled_from([TD3, SAC, DQN, PPO]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_density_pattern_and_distribution(
    net_arch, n_inputs, sparsity, pattern, distribution, initial_mask, dense_layers, algorithm, seed
):
    policy_kwargs = dict(net_arch=net_arch, pattern=pattern, dense_layers=dense_layers, initial_mask=initial_mask)
    if ":" in pattern and pattern[0].isdigit():
        distribution, sparsity = None, None
    env = RandomEnv(discrete=algorithm in DISCRETE, n_inputs=n_inputs)
    try:
        model = make_model(
            algorithm, env=env, seed=seed, policy_kwargs=policy_kwargs | dict(sparsity=sparsity, distribution=distribution)
        )
    except ValueError as error:
        assert "cannot be reached" in str(error)
        return
    plan = {name: layer.n_active for name, layer in model.policy.sparsifier.plan.items()}
    shuffled = shuffle_masks(model, every=2)
    model.learn(32)
    assert shuffled.n_changes > 0
    assert_invariants(model)
    assert plan == {name: int((layer.weight_mask).sum()) for name, layer in model.policy.sparsifier.layers.items()}
