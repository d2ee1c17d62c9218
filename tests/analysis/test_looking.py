"""Whoever looks at a model does not change its training: global random streams, on every device, are left as they are."""

import random
from itertools import count

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_sparse import QuantizationAware, SparsityLogger, quantize, shrink, sparse_policy, sparsify, sparsity_report, to_stock
from sb3_sparse.conversion.loading import load_model
from sb3_sparse.utils import randomness
from sb3_sparse.utils.randomness import devices_in_use, undisturbed_randomness
from tests.helpers import equal_state, make_model, observations

CUDA = th.device("cuda", 0)


class Cuda:
    """The random stream of a CUDA device that is not there: a number that every drawing adds one to."""

    def __init__(self, monkeypatch):
        self.state = th.tensor([100], dtype=th.uint8)
        self.seen = []
        monkeypatch.setattr(th.cuda, "get_rng_state", self.get)
        monkeypatch.setattr(th.cuda, "set_rng_state", self.set)
        monkeypatch.setattr(th.cuda, "is_available", lambda: True)
        monkeypatch.setattr(th.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(th.cuda, "device_count", lambda: 1)

    def get(self, device="cuda"):
        self.seen.append(device)
        return self.state.clone()

    def set(self, state, device="cuda"):
        self.state = state.clone()

    def draw(self):
        self.state = self.state + 1


class Drawing(BaseFeaturesExtractor):
    """Draws from every stream in each pass, as dropout and noisy networks do; what comes out depends on it."""

    cuda: "Cuda | None" = None

    def __init__(self, observation_space):
        super().__init__(observation_space, 7)
        self.layer = th.nn.Linear(7, 7)

    def forward(self, observations):
        drawn = random.random() + np.random.random()
        if Drawing.cuda is not None:
            Drawing.cuda.draw()
            drawn += float(Drawing.cuda.state) / 256
        return self.layer(observations) + 0.1 * th.rand(observations.shape) + 0.01 * drawn


@pytest.fixture
def cuda(monkeypatch):
    """A CUDA device on which, as far as anybody can tell, there are parts of every policy."""
    stream = Cuda(monkeypatch)
    monkeypatch.setattr(Drawing, "cuda", stream)
    real = randomness.devices_of
    for module in ("analysis.gradient_step", "policies.usage", "policies.quantized_layers"):
        monkeypatch.setattr(f"sb3_sparse.{module}.devices_of", lambda policy: [*real(policy), CUDA])
    return stream


def streams(cuda):
    return random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist(), cuda.state.tolist()


class Looker(BaseCallback):
    """Reports at every step."""

    n_reports = 0

    def _on_step(self):
        assert sparsity_report(self.model).inference.sparse > 0
        assert sparse_policy(self.model).sparsifier.violations() == []
        self.n_reports += 1
        return True


def trained(algorithm, callback, cuda):
    cuda.state = th.tensor([100], dtype=th.uint8)
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.6, features_extractor_class=Drawing))
    model.learn(40, callback=callback)
    return model, streams(cuda)


@pytest.mark.parametrize("algorithm", [TD3, SAC, CrossQ, DQN, PPO, RecurrentPPO])
def test_a_logger_never_changes_a_training(algorithm, cuda, capsys):
    plain, expected = trained(algorithm, None, cuda)
    for callback in (SparsityLogger(verbose=1), Looker()):
        model, found = trained(algorithm, callback, cuda)
        assert found == expected
        assert equal_state(plain, model)
    assert callback.n_reports >= 40
    # The test itself can tell: one number more from any stream is another training
    cuda.seen.clear()
    sparsity_report(plain)
    assert CUDA in cuda.seen


@pytest.mark.parametrize("stream", ["python", "numpy", "torch", "cuda"])
def test_every_stream_matters(stream, cuda):
    class Drawer(BaseCallback):
        def _on_step(self):
            {"python": random.random, "numpy": np.random.random, "torch": lambda: th.rand(1), "cuda": cuda.draw}[stream]()
            return True

    assert not equal_state(trained(SAC, None, cuda)[0], trained(SAC, Drawer(), cuda)[0])


@pytest.mark.parametrize("algorithm", [SAC, DQN, PPO])
def test_reports_watches_and_plans_draw_nothing(algorithm, cuda):
    model = make_model(algorithm, policy_kwargs=dict(features_extractor_class=Drawing)).learn(24)
    before = streams(cuda)
    sparsity_report(model)
    assert streams(cuda) == before
    sparse_policy(model).sparsifier.violations()
    callback = QuantizationAware(start=0)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    callback.on_training_end()
    assert streams(cuda) == before


def test_a_policy_that_is_watched_at_creation(cuda, monkeypatch):
    """Creation draws initial weights, and nothing for the sake of looking."""

    def after_creation(sparse):
        cuda.state = th.tensor([100], dtype=th.uint8)
        random.seed(1)
        make_model(PPO, sparse=sparse, policy_kwargs=dict(features_extractor_class=Drawing))
        return streams(cuda)

    assert after_creation(True) == after_creation(False)


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: sparsify(model, 0.9),
        lambda model: shrink(model),
        lambda model: to_stock(model),
        lambda model: quantize(model, data=observations(model)),
    ],
    ids=["sparsify", "shrink", "to_stock", "quantize"],
)
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_conversions_ask_for_the_models_device(algorithm, convert, monkeypatch):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.6)).learn(24)
    kept = []
    for module in ("saved", "quantize"):
        monkeypatch.setattr(
            f"sb3_sparse.conversion.{module}.undisturbed_randomness",
            lambda devices: kept.extend(devices) or undisturbed_randomness([]),
        )
    convert(model)
    assert kept
    assert set(kept) == {model.device}


def test_reading_a_file_with_a_seed_leaves_cuda_alone(tmp_path, cuda, monkeypatch):
    make_model(TD3, policy_kwargs=dict(sparsity=0.6)).save(tmp_path / "model.zip")
    calls = count()
    # What torch does where CUDA is in use
    monkeypatch.setattr(th.cuda, "manual_seed_all", lambda seed: (next(calls), cuda.draw()))
    monkeypatch.setattr(th.cuda, "_is_in_bad_fork", lambda: False)
    before = streams(cuda)
    load_model(tmp_path / "model.zip")
    assert next(calls) > 0
    assert streams(cuda) == before


def test_devices_in_use(cuda, monkeypatch):
    assert devices_in_use() == [CUDA]
    monkeypatch.setattr(th.cuda, "is_initialized", lambda: False)
    assert devices_in_use() == []


def test_streams_come_back_after_an_error(cuda):
    before = streams(cuda)

    def fail():
        with undisturbed_randomness([th.device("cpu"), CUDA]):
            random.random(), np.random.random(), th.rand(1), cuda.draw()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert streams(cuda) == before


@pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")
def test_sac_on_cuda():
    def train(callback):
        return make_model(SAC, device="cuda", policy_kwargs=dict(sparsity=0.6)).learn(60, callback=callback)

    assert equal_state(train(None), train(SparsityLogger()))
