"""Emptied replay buffers: when, what is left, what is refused."""

import re

import pytest
from stable_baselines3 import DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse import DynamicNStepReplayBuffer, ReplayReset
from tests.helpers import RandomEnv, make_model


class Sizes(BaseCallback):
    """Transitions in the buffer when an environment step has been made and not been stored yet, after the others."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def _on_step(self):
        self.sizes.append(self.model.replay_buffer.size())
        return True


def moments(callback):
    return [(event.timestep, event.n_dropped) for event in callback.events]


@pytest.mark.parametrize("buffer", [None, NStepReplayBuffer, DynamicNStepReplayBuffer])
def test_by_hand(buffer):
    model = make_model(SAC, replay_buffer_class=buffer, train_freq=1, gradient_steps=1, learning_starts=5)
    callback, sizes = ReplayReset(20), Sizes()
    model.learn(50, callback=[callback, sizes])
    # The transition of the step at which it happens is stored behind it
    assert moments(callback) == [(20, 19), (40, 20)]
    assert sizes.sizes == [*range(19), *range(20), *range(11)]
    assert model.replay_buffer.size() == 11


def test_start_and_stop():
    for arguments, expected in (
        (dict(), [20, 40, 60, 80, 100]),
        (dict(start=30), [40, 60, 80, 100]),
        (dict(start=0.4, stop=0.8), [40, 60]),
        (dict(stop=20), []),
    ):
        model = make_model(DQN, learning_starts=10)
        callback = ReplayReset(20, **arguments)
        model.learn(100, callback=callback)
        assert [timestep for timestep, _ in moments(callback)] == expected


def test_several_environments_and_a_beat_that_no_step_meets():
    model = make_model(TD3, env=DummyVecEnv([RandomEnv] * 3), learning_starts=10, train_freq=1)
    callback = ReplayReset(20)
    model.learn(60, callback=callback)
    # Steps are 3, 6, ...: the first at or after each beat
    assert moments(callback) == [(21, 18), (42, 21), (60, 18)]


def test_goes_on_where_it_was():
    model = make_model(DQN, learning_starts=10)
    model.learn(50, callback=ReplayReset(20))
    callback = ReplayReset(20)
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert [timestep for timestep, _ in moments(callback)] == [60, 80, 100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(every=0), "`every` must be an integer >= 1, got 0"),
        (dict(every=2.5), "`every` must be an integer >= 1, got 2.5"),
        (dict(every=10, start="soon"), "`start` must be None, a float in [0, 1]"),
        (dict(every=10, start=30, stop=30), "`stop`=30 must be after `start`=30"),
    ],
)
def test_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ReplayReset(**arguments)


def test_models_without_a_buffer_are_refused_before_a_step():
    model = make_model(PPO)
    with pytest.raises(ValueError, match="ReplayReset needs an algorithm with a replay buffer; PPO has none"):
        model.learn(64, callback=ReplayReset(10))
    assert model.num_timesteps == 0


def test_hindsight_is_refused():
    model = make_model(DQN)
    model.replay_buffer = object.__new__(HerReplayBuffer)
    with pytest.raises(ValueError, match="ReplayReset cannot empty a HerReplayBuffer"):
        model.learn(64, callback=ReplayReset(10))
    assert model.num_timesteps == 0
