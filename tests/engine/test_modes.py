"""Torch's modes and transformations: what the stock policy answers, or a refusal that names the way out."""

import re
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, TD3
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sb3_sparse
from tests.helpers import make_model, observations


@pytest.fixture(params=["native", "torch"])
def engine(request, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_ENGINE", request.param)
    return request.param


@pytest.fixture(params=["float", "quantized"])
def actor(request, engine):
    """What decides in a TD3 policy, and a batch of observations."""
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    x = th.from_numpy(observations(model, 6))
    if request.param == "quantized":
        model = sb3_sparse.quantize(model, data=observations(model, 64))
    network = model.policy.actor.mu
    network(x)
    return network


@pytest.fixture
def x():
    return th.from_numpy(observations(make_model(TD3, policy_kwargs=dict(sparsity=0.7)), 6))


def by_layer(network, x):
    """The same, layer by layer: no sequence is called."""
    for module in network:
        x = module(x)
    return x


def close(own, other):
    th.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def _inference_mode(network, x):
    with th.inference_mode():
        return network(x), by_layer(network, x)


def _no_grad(network, x):
    with th.no_grad():
        return network(x), by_layer(network, x)


def _autocast(network, x):
    with th.autocast("cpu", th.bfloat16):
        return network(x).float(), by_layer(network, x).float()


def _vmap(network, x):
    return th.func.vmap(network)(x), by_layer(network, x)


def _functional_call(network, x):
    parameters = {name: parameter.detach() * 1.5 for name, parameter in network.named_parameters()}
    own = th.func.functional_call(network, parameters, (x,))
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    return own, by_layer(network, x)


def _grad(network, x):
    return tuple(th.func.grad(lambda x, run=run: run(x).pow(2).sum())(x) for run in (network, lambda x: by_layer(network, x)))


def _jvp(network, x):
    runs = (network, lambda x: by_layer(network, x))
    return tuple(th.func.jvp(run, (x,), (th.ones_like(x),))[1] for run in runs)


def _forward_ad(network, x):
    found = []
    with th.autograd.forward_ad.dual_level():
        for run in (network, lambda x: by_layer(network, x)):
            output = run(th.autograd.forward_ad.make_dual(x, th.ones_like(x)))
            found.append(th.autograd.forward_ad.unpack_dual(output).tangent)
    return tuple(found)


def _jacobian(network, x):
    runs = (network, lambda x: by_layer(network, x))
    return tuple(th.autograd.functional.jacobian(run, x, vectorize=True) for run in runs)


def _compile(network, x):
    return th.compile(network, backend="eager")(x), by_layer(network, x)


def _export(network, x):
    return th.export.export(network, (x,)).module()(x), by_layer(network, x)


def _trace(network, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return th.jit.trace(network, x)(x), by_layer(network, x)


def _hooks(network, x):
    met = []
    for module in network:
        module.register_forward_hook(lambda module, args, output: met.append(module))
    own = network(x)
    assert met == list(network)
    return own, by_layer(network, x)


def _frozen(network, x):
    network.requires_grad_(False)
    own = network(x)
    assert not own.requires_grad
    return own, by_layer(network, x)


def _flops(network, x):
    found = []
    for run in (network, lambda x: by_layer(network, x)):
        with FlopCounterMode(display=False) as counter:
            run(x)
        found.append(th.tensor(counter.get_total_flops()))
    return tuple(found)


def _default_device(network, x):
    with th.device("cpu"):
        return network(x), by_layer(network, x)


MODES = [_inference_mode, _no_grad, _autocast, _vmap, _functional_call, _grad, _jvp, _forward_ad, _jacobian, _compile, _export]
MODES += [_trace, _hooks, _frozen, _flops, _default_device]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__.strip("_"))
def test_modes_give_what_the_layers_give_one_by_one(mode, actor, x):
    try:
        own, other = mode(actor, x)
    except (RuntimeError, TypeError, ValueError) as error:
        assert re.search("engine='torch'|to_stock", str(error)), error
        return
    close(own, other)
    close(actor(x), by_layer(actor, x))


@pytest.mark.parametrize("algorithm", [TD3, SAC])
@pytest.mark.parametrize("mode", [nullcontext, th.no_grad, th.inference_mode])
def test_policies_predict_what_the_stock_policy_predicts(mode, algorithm, engine):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    stock = make_model(algorithm, sparse=False)
    stock.policy.load_state_dict(model.policy.state_dict())
    rows = observations(model)
    with mode():
        own, other = (one.predict(rows, deterministic=True)[0] for one in (model, stock))
    assert np.allclose(own, other, atol=1e-5)
    assert isinstance(model.policy.actor, nn.Module)
