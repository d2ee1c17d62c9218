"""Faults that were found once: each is one difference between the engines that a program could see."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn

from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.policies import SparseTD3Policy
from tests.engine.networks import MLP, dense, make_input, make_sequence, needs_kernels
from tests.helpers import RandomEnv, equal_state, make_model

pytestmark = needs_kernels
ENGINES = pytest.mark.parametrize("engine", ["native", "torch"], indirect=True)


@pytest.fixture
def engine(request, monkeypatch):
    """The engine, by the variable that wins over the argument."""
    monkeypatch.setenv("SB3_SPARSE_ENGINE", request.param)
    return request.param


def close(own, other, **kwargs):
    th.testing.assert_close(own, other, **(dict(rtol=1e-4, atol=1e-5) | kwargs))


def twins():
    """One sequence, and the same that torch multiplies."""
    return make_sequence(MLP), make_sequence(MLP, engine="torch")


def gradients(sequence):
    return [parameter.grad for parameter in sequence.parameters()]


def same_gradients(own, other):
    for first, second in zip(gradients(own), gradients(other), strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            close(first, second)


# --- Gradients ---


@ENGINES
@pytest.mark.parametrize("algorithm", [TD3, SAC])
def test_a_critics_weights_get_gradients_from_actions_that_require_them(algorithm, engine):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    observations, actions = th.randn(5, 7), th.randn(5, 2, requires_grad=True)
    sum(q.sum() for q in model.critic(observations, actions)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.critic.q_networks[0][0].parameters())
    assert actions.grad.any()


def test_a_double_backward_and_a_loss_of_both():
    for kind in ("penalty", "step of a step"):
        found = []
        for sequence in twins():
            x = make_input(MLP).requires_grad_()
            if kind == "penalty":
                (slope,) = th.autograd.grad(sequence(x).pow(2).sum(), x, create_graph=True)
                (slope.pow(2).sum() + sequence(x).sum()).backward()
            else:
                grads = th.autograd.grad(sequence(x).pow(2).sum(), list(sequence.parameters()), create_graph=True)
                sum(grad.pow(2).sum() for grad in grads).backward()
            found.append(sequence)
        same_gradients(*found)


@ENGINES
def test_one_loss_for_two_networks(engine):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    observations = th.randn(5, 7)
    q = model.critic(observations, model.actor(observations))
    (q[0].sum() + 3 * q[1].pow(2).sum()).backward()
    for network in (model.actor.mu, *model.critic.q_networks):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    model.critic.zero_grad()
    model.critic(observations, th.zeros(5, 2))[1].sum().backward()
    assert all(parameter.grad is None for parameter in model.critic.q_networks[0].parameters())


def test_gradients_are_those_before_masking_where_torch_gives_those():
    own, other = (th.autograd.grad(sequence(make_input(MLP)).sum(), list(sequence.parameters())) for sequence in twins())
    for first, second in zip(own, other, strict=True):
        close(first, second)
    assert own[0][~make_sequence(MLP)[0].weight_mask].any()


def test_gradients_that_somebody_keeps_stay_what_they_were():
    for sequence in twins():
        sequence(make_input(MLP)).sum().backward()
        kept = sequence[0].weight.grad
        before = kept.clone()
        sequence.zero_grad()
        (2 * sequence(make_input(MLP)).sum()).backward()
        assert th.equal(kept, before)
        close(sequence[0].weight.grad, 2 * before)
        kept = sequence[0].weight.grad
        sequence(make_input(MLP)).sum().backward()  # and what is added to is the same tensor
        close(kept, 3 * before)


def test_gradients_written_to_outside_the_mask_do_not_come_back():
    sequence = make_sequence(MLP)
    for _ in range(2):
        sequence(make_input(MLP)).sum().backward()
        assert not sequence[0].weight.grad[~sequence[0].weight_mask].any()
        sequence[0].weight.grad.add_(1)
        sequence.zero_grad()


def test_hooks_of_parameters_see_each_gradient_once():
    for create_graph in (False, True):
        found = []
        for sequence in twins():
            x = make_input(MLP).requires_grad_()
            x.register_hook(lambda grad: 3 * grad)
            sequence[0].weight.register_hook(lambda grad: 2 * grad)
            sequence(x).sum().backward(create_graph=create_graph)
            found.append((sequence, x.grad))
        same_gradients(found[0][0], found[1][0])
        close(found[0][1], found[1][1])


def test_a_freed_graph_is_refused():
    for sequence in twins():
        loss = sequence(make_input(MLP)).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()


def test_an_input_written_to_between_the_passes_is_refused():
    for sequence in twins():
        x = make_input(MLP)
        loss = sequence(x).sum()
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# --- Networks that are called one after the other ---


@ENGINES
def test_members_answer_for_themselves_whatever_changed_between_two_calls(engine):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    networks = model.critic.q_networks
    x = th.randn(6, 9)

    def check(network, grad=True):
        found = network(x)
        close(found, dense(network, x))
        assert found.requires_grad == grad

    def write():
        with th.no_grad():
            networks[1][0].weight.mul_(2)

    def mask():
        networks[1][0].replace_mask(networks[1][0].weight_mask.roll(1, 0))

    for change in (lambda: x.add_(1), write, mask, lambda: networks[1][0].bias.data.add_(1)):
        for network in networks:
            check(network)
            change()
            check(network)
    kept = iter(networks)
    check(next(kept))
    x.mul_(2)
    with th.no_grad():
        check(networks[1], grad=False)
        check(next(kept), grad=False)
    check(networks[1])
    first = next(iter(networks))(x)
    with th.no_grad():
        first.zero_()
    check(networks[0])


@ENGINES
@pytest.mark.parametrize("container", [list, tuple, lambda networks: dict(enumerate(networks)), nn.ModuleList])
def test_critics_may_keep_their_networks_in_any_container(container, engine):
    class OwnCritic(ContinuousCritic):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            networks = self.q_networks
            del self.q_networks
            self.q_networks = container(networks)

        def _members(self):
            return list(self.q_networks.values()) if isinstance(self.q_networks, dict) else list(self.q_networks)

        def forward(self, obs, actions):
            x = th.cat([self.extract_features(obs, self.features_extractor), actions], dim=1)
            return tuple(network(x) for network in self._members())

        def q1_forward(self, obs, actions):
            return self.forward(obs, actions)[0]

    class OwnPolicy(SparseTD3Policy):
        def make_critic(self, features_extractor=None):
            kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
            return OwnCritic(**kwargs).to(self.device)

    model = TD3(OwnPolicy, RandomEnv(), learning_starts=20, batch_size=8, policy_kwargs=dict(sparsity=0.7, net_arch=[16, 12]))
    model.learn(30)
    assert model.policy.sparsifier.violations() == []


# --- Writes ---


WRITES = {
    "in place": lambda weight, held, values: weight.copy_(values),
    "data": lambda weight, held, values: weight.data.copy_(values),
    "new data": lambda weight, held, values: setattr(weight, "data", values.clone()),
    "data that is held": lambda weight, held, values: held["data"].copy_(values),
    "a view that is held": lambda weight, held, values: held["view"].copy_(values.view(-1)),
    "an array that is held": lambda weight, held, values: np.copyto(held["array"], values.numpy()),
    "an array": lambda weight, held, values: np.copyto(weight.detach().numpy(), values.numpy()),
    "data of a view": lambda weight, held, values: weight[:].data.copy_(values),
    "data of a detached one": lambda weight, held, values: weight.detach().data.copy_(values),
    "by row": lambda weight, held, values: [row.data.copy_(value) for row, value in zip(weight, values, strict=True)],
    "dlpack": lambda weight, held, values: th.from_dlpack(weight.detach()).data.copy_(values),
    "storage": lambda weight, held, values: weight.untyped_storage().copy_(values.contiguous().untyped_storage()),
}


@pytest.mark.parametrize("when", ["before the pass", "between the passes"])
@pytest.mark.parametrize("held_from", ["the start", "the first pass"])
@pytest.mark.parametrize("write", WRITES)
def test_writes_are_seen(write, held_from, when):
    for layer in (0, 2):
        found = []
        for sequence in twins():
            weight = sequence[layer].weight
            if held_from == "the first pass":
                sequence(make_input(MLP)).sum().backward()
                sequence.zero_grad()
            held = {"data": weight.data, "view": weight.detach().view(-1), "array": weight.detach().numpy()}
            held = {key: value for key, value in held.items() if write.endswith("held") and key in write}
            for _ in range(2):
                sequence(make_input(MLP))  # it has found out who holds what
            x = make_input(MLP).requires_grad_()
            refused = None
            if when == "between the passes":
                output = sequence(x)
            with th.no_grad():
                WRITES[write](weight, held, weight.detach().clone() * 1.5)
            if when == "before the pass":
                output = sequence(x)
            try:
                output.sum().backward()
            except RuntimeError as error:
                refused = str(error)[:60]
            found.append((output, x.grad, [parameter.grad for parameter in sequence.parameters()], refused, sequence(x)))
        own, other = found
        assert own[3] == other[3]
        close(own[0], other[0])
        close(own[4], other[4])
        if own[3] is None:
            close(own[1], other[1])
            for first, second in zip(own[2], other[2], strict=True):
                close(first, second)


def test_once_nobody_holds_its_memory_a_weight_is_not_read_for_every_pass():
    sequence = make_sequence(MLP)
    sequence(make_input(MLP))
    held = [sequence[0].weight.data]
    for holding in (True, False):
        for _ in range(2):
            sequence(make_input(MLP))
        assert sequence.present_survivors().knows(0) != holding
        held.clear()


def test_pruned_weights_that_somebody_writes_to_count_until_they_are_projected():
    own, other = twins()
    for sequence in (own, other):
        sequence(make_input(MLP))
        with th.no_grad():
            sequence[0].weight.add_(0.5)
    close(own(make_input(MLP)), other(make_input(MLP)))
    for sequence in (own, other):
        sequence[0].project()
    close(own(make_input(MLP)), other(make_input(MLP)))
    assert own.present_survivors().follow()


def test_moments_that_somebody_holds_go_on():
    for what in ("the state", "a parameter's", "a moment", "an array"):
        found = []
        for adopted in (True, False):
            sequence = make_sequence(MLP)
            optimizer = th.optim.Adam(sequence.parameters(), lr=0.1)
            if adopted:
                SurvivorAdam.adopt(optimizer, [sequence])
            for index in range(3):
                optimizer.zero_grad()
                sequence(make_input(MLP) + index).sum().backward()
                optimizer.step()
                if index == 0:
                    held = {
                        "the state": lambda state: state,
                        "a parameter's": lambda state, sequence=sequence: state[sequence[0].weight],
                        "a moment": lambda state, sequence=sequence: state[sequence[0].weight]["exp_avg"],
                        "an array": lambda state, sequence=sequence: state[sequence[0].weight]["exp_avg"].numpy(),
                    }[what](optimizer.state)
            held = held[sequence[0].weight] if what == "the state" else held
            held = held["exp_avg"] if isinstance(held, dict) else held
            found.append(th.as_tensor(held).clone())
        assert th.equal(*found)


def test_a_bias_given_for_one_call_is_used():
    sequence = make_sequence(MLP)
    sequence(make_input(MLP))
    given = {"0.bias": th.ones(16)}
    own, other = (
        th.func.functional_call(one, given, (make_input(MLP),)) for one in (sequence, make_sequence(MLP, engine="torch"))
    )
    close(own, other)


# --- Modes and dtypes ---


@ENGINES
@pytest.mark.parametrize("algorithm", [TD3, SAC])
def test_inference_mode(algorithm, engine):
    with th.inference_mode():
        made_inside = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
        made_inside.predict(np.zeros(7, np.float32))
    made_inside.predict(np.zeros(7, np.float32))
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    observations = np.linspace(-1, 1, 7, dtype=np.float32)
    with th.inference_mode():
        inside = model.predict(observations, deterministic=True)[0]
        model.critic(th.zeros(2, 7), th.zeros(2, 2))
    assert np.array_equal(inside, model.predict(observations, deterministic=True)[0])
    model.learn(40)
    with th.inference_mode():
        inside = model.predict(observations, deterministic=True)[0]
    assert np.array_equal(inside, model.predict(observations, deterministic=True)[0])
    model.learn(20)


@pytest.mark.parametrize("dtype", [th.float64, th.float16, th.bfloat16])
def test_to_another_dtype_and_back(dtype):
    own, other = twins()
    optimizers = [th.optim.Adam(sequence.parameters(), lr=1e-3, eps=1.0) for sequence in (own, other)]
    SurvivorAdam.adopt(optimizers[0], [own])
    for index, present in enumerate((th.float32, dtype, th.float32)):
        for sequence, optimizer in zip((own, other), optimizers, strict=True):
            sequence.to(present)
            if index % 2 == 0:
                optimizer.zero_grad()
                for _ in range(2):
                    sequence(make_input(MLP, dtype=present)).sum().backward()
                    optimizer.step()
            else:
                sequence(make_input(MLP).to(present)).sum().backward()
        same_gradients(own, other)
        for first, second in zip(own.parameters(), other.parameters(), strict=True):
            close(first, second)


class _Meddle(BaseCallback):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def _on_step(self):
        if self.num_timesteps in (20, 33):
            self.what(self.model)
        return True


def _load(model):
    model.policy.load_state_dict(model.policy.state_dict())


def _load_everything(model):
    model.set_parameters(model.get_parameters())


@ENGINES
@pytest.mark.parametrize("algorithm", [TD3, SAC])
@pytest.mark.parametrize(
    "what",
    [_load, _load_everything, lambda model: copy.deepcopy(model.policy), lambda model: copy.deepcopy(model.critic)],
    ids=["load", "load everything", "copy", "copy the critic"],
)
def test_looking_in_mid_training_changes_nothing(what, algorithm, engine):
    models = []
    for callback in (None, _Meddle(what)):
        model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
        model.learn(45, callback=callback)
        models.append(model)
    assert equal_state(*models)


def test_a_copy_goes_on_as_the_original():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.learn(40)
    other = copy.deepcopy(model.policy)
    model.policy.load_state_dict(other.state_dict())
    for policy in (model.policy, other):
        th.manual_seed(0)
        for _ in range(3):
            policy.critic.optimizer.zero_grad()
            sum(q.pow(2).mean() for q in policy.critic(th.randn(8, 7), th.randn(8, 2))).backward()
            policy.critic.optimizer.step()
    assert all(th.equal(one, another) for one, another in zip(model.policy.parameters(), other.parameters(), strict=True))


# --- Modules ---


def _another_activation(sequence):
    sequence[1] = nn.ELU()


def _another_layer(sequence):
    sequence[0] = nn.Linear(9, 16)
    with th.no_grad():
        for parameter in sequence[0].parameters():
            parameter.fill_(0.1)


def _one_less(sequence):
    del sequence[3]


def _one_more(sequence):
    sequence.append(nn.Softplus())


def _own_forward(sequence):
    sequence[2].forward = lambda x, stock=sequence[2].forward: 2 * stock(x)


def _parametrized(sequence):
    nn.utils.parametrizations.weight_norm(sequence[0])


def _for_every_module(sequence):
    return nn.modules.module.register_module_forward_hook(lambda module, args, output: output + 1)


@pytest.mark.parametrize(
    "change", [_another_activation, _another_layer, _one_less, _one_more, _own_forward, _parametrized, _for_every_module]
)
def test_modules_that_are_changed(change):
    found = []
    for sequence in twins():
        sequence(make_input(MLP))
        handle = change(sequence)
        sequence.eval()
        assert not any(module.training for module in sequence.modules())
        x = make_input(MLP).requires_grad_()
        output = sequence(x)
        output.sum().backward()
        if handle is not None:
            handle.remove()
        found.append([output, x.grad, *gradients(sequence)])
    for first, second in zip(*found, strict=True):
        close(first, second)


def test_parameters_are_made_of_parameters():
    sequence = make_sequence(MLP)
    sequence(make_input(MLP)).sum().backward()
    for own in (sequence[0].weight, sequence[0].bias):
        other = nn.Parameter(own)
        assert isinstance(other, nn.Parameter)
        assert th.equal(own, other)
        assert other.data_ptr() == own.data_ptr()
        assert other.grad is None
        assert type(own.detach()) is type(own.data) is th.Tensor
    layer = nn.Linear(9, 16)
    layer.weight = nn.Parameter(sequence[0].weight)
    layer(make_input(MLP)).sum().backward()
    assert layer.weight.grad.any()


@pytest.mark.parametrize("mode", [True, False, 1])
def test_training_mode_is_set_as_torch_sets_it(mode):
    own, other = make_sequence(MLP), nn.Sequential(nn.Linear(9, 16), nn.ReLU())
    found = []
    for sequence in (own, other):
        sequence.train(False)
        try:
            assert sequence.train(mode) is sequence
            found.append([module.training for module in sequence.modules()][:3])
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]


@pytest.mark.parametrize("written", ["input", "bias", "weight"])
def test_a_double_backward_of_another_pass_is_refused_however_little_was_written(written):
    sequence = make_sequence(MLP)
    x = make_input(MLP).requires_grad_()
    value = x * 1.0
    output = sequence(value)
    tensor = {"input": value, "bias": sequence[0].bias, "weight": sequence[2].weight}[written]
    with th.no_grad():
        tensor[(0,) * tensor.dim()] += 1e-6
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        th.autograd.grad(output.sum(), x, create_graph=True)
