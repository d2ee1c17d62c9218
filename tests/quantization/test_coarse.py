"""A warning where the features of an observation are of so different sizes that 8 bits are too few for some."""

import re
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, SAC

from sb3_sparse import QuantizationAware, quantize
from tests.helpers import make_model

COARSE = "the features of the observation differ in size"


def model_with_features(sizes, algorithm=SAC, **kwargs):
    """The weights of each feature are as large as others divided by its size, as those that are learnt."""
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.5, net_arch=[32, 32]), seed=1, learning_starts=10, **kwargs)
    layer = model.policy.sparsifier.layers["actor.latent_pi.0" if algorithm is SAC else "q_net.q_net.0"]
    with th.no_grad():
        layer.weight.div_(th.as_tensor(sizes, dtype=th.float32))
    return model


def said(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in caught if COARSE in str(one.message)]


def data(model):
    return np.random.default_rng(0).normal(size=(64, *model.observation_space.shape)).astype(np.float32)


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_features_of_different_sizes(algorithm):
    model = model_with_features([0.02, 1, 1, 1, 1, 1, 4], algorithm)
    (message,) = said(lambda: quantize(model, data=data(model)))
    # By hand: of each column, the rounding by its size
    layer = model.policy.sparsifier.layers["actor.latent_pi.0" if algorithm is SAC else "q_net.q_net.0"]
    weight = layer.weight.detach().double()
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    off = (th.round(weight / scale) * scale - weight).norm(dim=0) / weight.norm(dim=0)
    assert f"its input {int(off.argmax())} by {float(off.max()):.0%}" in message
    assert float(off.max()) > 0.2
    assert f"in the middle by {float(off.median()):.1%}" in message
    (aware,) = said(lambda: model.learn(60, callback=QuantizationAware(start=0.5)))
    assert re.search(r"layer '(actor.latent_pi|q_net.q_net).0': 8 bits change the weights of its input", aware)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_features_of_one_size(bits):
    model = model_with_features(np.ones(7))
    assert said(lambda: quantize(model, bits, data=data(model))) == []


def test_fewer_bits_are_too_few_earlier():
    model = model_with_features([0.3, 1, 1, 1, 1, 1, 5])
    assert said(lambda: quantize(model, 8, data=data(model))) == []
    assert len(said(lambda: quantize(model, 4, data=data(model)))) == 1


def test_layers_that_do_not_matter():
    """What stays in float, what sees no observation, features without weights, and images."""
    model = model_with_features([0.02, 1, 1, 1, 1, 1, 4])
    assert said(lambda: quantize(model, data=data(model), exempt_layers="first")) == []
    hidden = model_with_features(np.ones(7))
    with th.no_grad():
        hidden.policy.sparsifier.layers["actor.latent_pi.2"].weight[:, 0] *= 1000
        hidden.policy.sparsifier.layers["actor.latent_pi.0"].weight[:, 3] = 0
    assert said(lambda: quantize(hidden, data=data(hidden))) == []
    with th.no_grad():
        hidden.policy.sparsifier.layers["actor.latent_pi.0"].weight.zero_()
    assert said(lambda: quantize(hidden, data=data(hidden))) == []
    images = make_model(DQN, "Cnn", policy_kwargs=dict(sparsity=0.5), seed=1, learning_starts=10)
    assert said(lambda: images.learn(24, callback=QuantizationAware(start=0.5))) == []
