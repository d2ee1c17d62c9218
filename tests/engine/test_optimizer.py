"""Adam and target updates over survivors are torch's, bit for bit."""

import copy

import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.utils import polyak_update
from torch.optim import Adam

from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.nn.layers import SparseConv2d, SparseLinear
from tests.engine.networks import MLP, Shape, dense, make_input, make_sequence, needs_kernels, shapes
from tests.helpers import assert_invariants, equal_state, make_model, shuffle_masks

pytestmark = needs_kernels


def same(first, second):
    return all(th.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def same_moments(first, second, pairs):
    return all(
        th.equal(first.state[one][key], second.state[other][key])
        for one, other in pairs
        for key in ("step", "exp_avg", "exp_avg_sq")
    )


@given(
    shape=shapes(),
    options=st.fixed_dictionaries(
        {
            "lr": st.sampled_from([1e-4, 3e-3, 0.1]),
            "betas": st.sampled_from([(0.9, 0.999), (0.3, 0.95), (0.0, 0.5)]),
            "eps": st.sampled_from([1e-8, 1e-3]),
            "weight_decay": st.sampled_from([0.0, 2e-4]),
        }
    ),
    looks=st.sets(st.integers(0, 7)),
)
@settings(max_examples=40)
def test_adam_is_torchs(shape, options, looks):
    own = make_sequence(shape)
    own(make_input(shape))  # there are survivors from the first step on
    other = copy.deepcopy(own)
    optimizers = [Adam(own.parameters(), **options), Adam(other.parameters(), **options)]
    SurvivorAdam.adopt(optimizers[0], [own])
    for index in range(8):
        for sequence, optimizer in zip((own, other), optimizers, strict=True):
            optimizer.zero_grad()
            (sequence(make_input(shape) * (index + 1)) ** 2).mean().backward()
            if index % 3 == 0:
                th.nn.utils.clip_grad_norm_(sequence.parameters(), 0.01)
            if index == 5:
                optimizer.param_groups[0]["lr"] *= 0.5
            optimizer.step()
        assert same(own, other)
        if index in looks:
            assert same_moments(*optimizers, list(zip(own.parameters(), other.parameters(), strict=True)))
    assert same_moments(*optimizers, list(zip(own.parameters(), other.parameters(), strict=True)))
    assert optimizers[0].state_dict().keys() == optimizers[1].state_dict().keys()


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"lr": th.tensor(1e-3)}])
def test_unknown_options_are_torchs_to_deal_with(options):
    own = make_sequence(MLP)
    other = copy.deepcopy(own)
    for sequence in (own, other):
        optimizer = Adam(sequence.parameters(), **options)
        if sequence is own:
            SurvivorAdam.adopt(optimizer, [own])
        for _ in range(3):
            optimizer.zero_grad()
            sequence(make_input(MLP)).sum().backward()
            for layer in sequence.layers:
                assert not layer.weight.grad[~layer.weight_mask].any()
            optimizer.step()
    assert same(own, other)


def test_closures_hooks_and_missing_gradients():
    sequence = make_sequence(MLP)
    optimizer = Adam(sequence.parameters(), lr=0.1)
    SurvivorAdam.adopt(optimizer, [sequence])
    met = []
    optimizer.register_step_pre_hook(lambda *_: met.append("before"))
    optimizer.register_step_post_hook(lambda *_: met.append("after"))
    before = copy.deepcopy(sequence)
    optimizer.step()
    assert same(sequence, before)
    assert met == ["before", "after"]

    def closure():
        optimizer.zero_grad()
        loss = sequence(make_input(MLP)).sum()
        loss.backward()
        return loss

    with th.no_grad():
        th.testing.assert_close(optimizer.step(closure).detach(), dense(before, make_input(MLP)).sum())
    assert not same(sequence, before)
    assert met == ["before", "after"] * 2
    # One layer left out: its weights stay
    optimizer.zero_grad()
    sequence(make_input(MLP)).sum().backward()
    for parameter in sequence[0].parameters():
        parameter.grad = None
    before = copy.deepcopy(sequence)
    optimizer.step()
    assert th.equal(before[0].weight, sequence[0].weight)
    assert not th.equal(before[2].weight, sequence[2].weight)


def test_some_gradients_are_missing_for_a_while():
    own = make_sequence(MLP)
    other = copy.deepcopy(own)
    optimizers = [Adam(own.parameters(), lr=0.1), Adam(other.parameters(), lr=0.1)]
    SurvivorAdam.adopt(optimizers[0], [own])
    for index in range(6):
        for sequence, optimizer in zip((own, other), optimizers, strict=True):
            optimizer.zero_grad()
            sequence(make_input(MLP)).sum().backward()
            if index in (2, 3):
                sequence[0].bias.grad = None
            optimizer.step()
        assert same(own, other), index
    assert same_moments(*optimizers, list(zip(own.parameters(), other.parameters(), strict=True)))


def trained(engine, change):
    """Two sequences with one Adam, three steps; ``change`` is called before the second. Both, and the optimizer."""
    sequences = [make_sequence(MLP, engine=engine) for _ in range(2)]
    optimizer = Adam([parameter for sequence in sequences for parameter in sequence.parameters()], lr=0.01)
    if engine == "native":
        SurvivorAdam.adopt(optimizer, sequences)
    for step in range(3):
        optimizer.zero_grad()
        if step == 1:
            change(sequences, optimizer)
        sum((sequence(make_input(MLP)) ** 2).mean() for sequence in sequences).backward()
        if step == 0:  # The first sequence has no state yet when the second one gets its own
            sequences[0][0].weight.grad = None
        optimizer.step()
        for sequence in sequences:
            for layer in sequence.layers:
                layer.project()
    return sequences, optimizer


def roll_mask(sequences, optimizer):
    layer = sequences[1].layers[0]
    layer.replace_mask(layer.weight_mask.roll(1, 0))


def write_moments(sequences, optimizer):
    optimizer.state[sequences[1].layers[0].weight]["exp_avg"].fill_(0.5)


@pytest.mark.parametrize("change", [lambda *_: None, roll_mask, write_moments], ids=["nothing", "mask", "moments"])
def test_states_are_torchs_in_number_order_and_where_nothing_is_left(change):
    (own, optimizer), (other, stock) = trained("native", change), trained("torch", change)
    pairs = [
        parameters
        for first, second in zip(own, other, strict=True)
        for parameters in zip(first.parameters(), second.parameters(), strict=True)
    ]
    names = [{id(pair[side]): index for index, pair in enumerate(pairs)} for side in (0, 1)]
    assert [names[0][id(parameter)] for parameter in optimizer.state] == [names[1][id(parameter)] for parameter in stock.state]
    for first, second in pairs:
        th.testing.assert_close(first, second)
        for key, value in stock.state[second].items():
            th.testing.assert_close(optimizer.state[first][key], value)


def test_layers_in_no_sequence_too():
    def layers():
        generator = th.Generator().manual_seed(0)
        stock = [th.nn.Conv2d(3, 8, 3), th.nn.Linear(8, 5, bias=False), th.nn.Linear(8, 4)]
        found = [SparseConv2d.from_dense(stock[0]), *(SparseLinear.from_dense(layer) for layer in stock[1:])]
        for layer in found:
            for parameter in layer.parameters():
                parameter.data = th.randn(parameter.shape, generator=generator)
            layer.replace_mask(th.rand(layer.weight.shape, generator=generator) < 0.3)
        return found

    own, other = layers(), layers()
    free = [th.nn.Parameter(th.ones(3)) for _ in range(2)]
    parameters = [[p for layer in made for p in layer.parameters()] + [free[i]] for i, made in enumerate((own, other))]
    optimizers = [Adam(made, lr=0.1) for made in parameters]
    SurvivorAdam.adopt(optimizers[0], [], own)
    for _ in range(4):
        for optimizer, (conv, first, second), scale in zip(optimizers, (own, other), free, strict=True):
            optimizer.zero_grad()
            x = conv(th.arange(75.0).reshape(1, 3, 5, 5).sin()).mean((2, 3))
            (first(x).sum() * scale.sum() + second(x).square().sum()).backward()
            optimizer.step()
    assert len(optimizers[0]._held) == 1
    for one, another in zip(*parameters, strict=True):
        assert th.equal(one, another)
    assert same_moments(*optimizers, list(zip(*parameters, strict=True)))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_what_others_write_to_pruned_weights_is_gone_after_the_next_step(engine):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, engine=engine))
    model.learn(60)
    for write in (lambda weight: weight.fill_(0.5), lambda weight: weight.data.fill_(0.5)):
        with th.no_grad():
            write(model.critic.q_networks[0][0].weight)
        assert model.policy.sparsifier.violations()
        model.train(1, 16)
        assert not model.policy.sparsifier.violations()


@pytest.mark.parametrize("algorithm", [TD3, DDPG, SAC, TQC, DQN, QRDQN, PPO, A2C])
def test_training_is_that_of_stock_adam(algorithm):
    # What the algorithms choose where the user chooses no optimizer
    eps = {"eps": 1e-5} if algorithm in (PPO, A2C) else {"eps": 0.01 / 8} if algorithm is QRDQN else {}
    model_kwargs = dict(use_rms_prop=False) if algorithm is A2C else {}
    # Who names an optimizer gets that very one; QR-DQN itself names Adam, so here it is a subclass
    named_adam = type("NamedAdam", (Adam,), {}) if algorithm is QRDQN else Adam
    models = []
    for named in ({}, {"optimizer_class": named_adam}):
        policy_kwargs = dict(sparsity=0.7, optimizer_kwargs=eps) | named
        models.append(make_model(algorithm, policy_kwargs=policy_kwargs, **model_kwargs))
        shuffle_masks(models[-1])
        models[-1].learn(60)
    kinds = [{type(optimizer) for optimizer in model.policy.sparsifier.optimizers.values()} for model in models]
    assert kinds == [{SurvivorAdam}, {named_adam}]
    assert equal_state(*models)
    assert_invariants(models[0])


def test_loaded_moments_take_the_place_of_those_in_use(tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.learn(40)
    model.save(tmp_path / "model.zip")
    before = copy.deepcopy(model.get_parameters())
    model.learn(40, reset_num_timesteps=False)
    model.set_parameters(tmp_path / "model.zip")
    after = model.get_parameters()
    for index, state in before["critic.optimizer"]["state"].items():
        for key, value in state.items():
            assert th.equal(value, after["critic.optimizer"]["state"][index][key]), (index, key)


def test_sparsity_zero_keeps_stock_adam():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.0))
    assert {type(optimizer) for optimizer in model.policy.sparsifier.optimizers.values()} == {Adam}


@given(shape=shapes(), tau=st.sampled_from([0.005, 0.5, 1.0]))
@settings(max_examples=30)
def test_polyak_is_torchs(shape, tau):
    online, target = make_sequence(shape), make_sequence(shape)
    with th.no_grad():
        for parameter in target.parameters():
            parameter.mul_(0.5)
    plain = copy.deepcopy((online, target))
    x = make_input(shape)
    for sequence in (online, target):
        sequence(x)
    scaled = []
    networks = [layer.weight.survivors.network for layer in target.layers]
    for _ in range(3):
        polyak_update(online.parameters(), target.parameters(), tau)
        with th.no_grad():
            for one, other in zip(plain[0].parameters(), plain[1].parameters(), strict=True):
                other.mul_(1 - tau)
                th.add(other, one, alpha=tau, out=other)
        scaled.append(same(target, plain[1]))
        th.testing.assert_close(target(x), dense(target, x), rtol=1e-4, atol=1e-5)
    assert scaled == [True] * 3
    assert networks == [layer.weight.survivors.network for layer in target.layers]
    assert all(layer.weight.is_current() for sequence in (online, target) for layer in sequence.layers)


def test_polyak_between_different_masks():
    online, target = make_sequence(MLP), make_sequence(Shape(**{**MLP.__dict__, "seed": 9}))
    x = make_input(MLP)
    online(x), target(x)
    expected = [0.5 * own + 0.5 * other for own, other in zip(target.parameters(), online.parameters(), strict=True)]
    polyak_update(online.parameters(), target.parameters(), 0.5)
    for value, parameter in zip(expected, target.parameters(), strict=True):
        th.testing.assert_close(value, parameter)


@pytest.mark.parametrize("name", ["a", "b"])
def test_no_leak(name):
    """Memory in use stops growing: of passes whose graph is kept, dropped, and never run backwards."""
    import resource

    sequence = make_sequence(Shape((64, 256, 256, 4), (0.5, 0.5, 1.0), "unstructured", ("relu", "relu", "none"), True, 256, 1))
    x = th.randn(256, 64)

    def passes(n):
        for _ in range(n):
            y = sequence(x)
            if name == "b":
                y.sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    passes(50)
    before = passes(50)
    # One leaked tape of this shape has more than half a megabyte
    assert passes(400) - before < 40_000
    assert native.available()


def _through_sequence(sequence, optimizer):
    sequence(make_input(MLP, dtype=th.float64)).square().mean().backward()


def _through_both(sequence, optimizer):
    (sequence(make_input(MLP, dtype=th.float64)).mean() + sequence.layers[0].weight.square().sum()).backward()


def _around_sequence(sequence, optimizer):
    sum(layer.weight.square().sum() for layer in sequence.layers[1:]).backward()


def _watched(sequence, optimizer):
    handle = sequence.layers[1].weight.register_hook(lambda gradient: 2 * gradient)
    sequence(make_input(MLP, dtype=th.float64)).sum().backward()
    handle.remove()


def _look(sequence, optimizer):
    assert sequence.layers[1].weight.grad is None or sequence.layers[1].weight.grad.shape == (12, 16)


def _lose_one(sequence, optimizer):
    sequence.layers[1].weight.grad = None


def _replace_one(sequence, optimizer):
    sequence.layers[0].weight.grad = sequence.layers[0].weight_mask.double()


def _scale(sequence, optimizer):
    th.nn.utils.clip_grad_norm_(sequence.parameters(), 0.01)


def _clear(sequence, optimizer):
    optimizer.zero_grad()


def _clear_module(sequence, optimizer):
    sequence.zero_grad()


def _clear_in_place(sequence, optimizer):
    optimizer.zero_grad(set_to_none=False)


def _step(sequence, optimizer):
    optimizer.step()
    for layer in sequence.layers:
        layer.project()


def _other_mask(sequence, optimizer):
    layer = sequence.layers[0]
    layer.replace_mask(layer.weight_mask.roll(1, 0))


ACTIONS = [
    _through_sequence,
    _through_both,
    _around_sequence,
    _watched,
    _look,
    _lose_one,
    _replace_one,
    _scale,
    _clear,
    _clear_module,
    _clear_in_place,
    _step,
    _other_mask,
]


@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=12))
@example([_through_sequence, _around_sequence])
@example([_through_sequence, _watched])
@example([_through_sequence, _look, _through_sequence])
@example([_through_sequence, _look, _through_both])
@example([_through_sequence, _other_mask, _through_sequence, _step])
@example([_through_sequence, _clear_in_place, _through_sequence, _step])
@settings(max_examples=150)
def test_gradients_are_torchs_whenever_somebody_looks(actions):
    """Weights' gradients are made dense when they are asked for, and nobody can tell."""
    sequences = [make_sequence(MLP, dtype=th.float64) for _ in range(2)]
    sequences[1].choice = None  # torch runs it
    # Steps are of the gradient's own size: rounding of small gradients stays small
    optimizers = [Adam(sequence.parameters(), lr=1e-3, eps=1.0) for sequence in sequences]
    SurvivorAdam.adopt(optimizers[0], sequences[:1])
    for action in actions:
        for sequence, optimizer in zip(sequences, optimizers, strict=True):
            action(sequence, optimizer)
    for one, other in zip(sequences[0].parameters(), sequences[1].parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            th.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_gradients_that_nobody_asks_for_stay_with_the_survivors():
    sequence = make_sequence(MLP)
    optimizer = Adam(sequence.parameters())
    SurvivorAdam.adopt(optimizer, [sequence])
    gradients = sequence.survivors().gradients
    for _ in range(2):
        optimizer.zero_grad()
        assert not gradients.waiting
        sequence(make_input(MLP)).mean().backward()
        optimizer.step()
        assert gradients.waiting
    assert sequence.layers[0].weight.grad.any()
    assert not gradients.waiting


def test_what_is_taken_out_of_the_optimizer_stays_what_it_is():
    own = make_sequence(MLP)
    other = copy.deepcopy(own)
    optimizers = [Adam(own.parameters()), Adam(other.parameters())]
    SurvivorAdam.adopt(optimizers[0], [own])
    for index in range(4):
        for sequence, optimizer in zip((own, other), optimizers, strict=True):
            optimizer.zero_grad()
            sequence(make_input(MLP)).mean().backward()
            if index == 2:
                optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0))
            optimizer.step()
        assert same(own, other)
    assert own.layers[0].weight not in optimizers[0].state
