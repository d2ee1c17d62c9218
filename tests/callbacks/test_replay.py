"""Multi-step targets, the live window and the callbacks that move them, against slow and independent implementations."""

import pickle
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.callbacks.replay import DelayedNStep, DynamicReplayCapacity
from tests.helpers import OFF_POLICY, RandomEnv, assert_invariants, equal_state, make_model, start_training

OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
GAMMA = 0.9
CONTINUOUS = [algorithm for algorithm in OFF_POLICY if algorithm.__name__ not in ("DQN", "QRDQN")]
SOFT = [SAC, TQC, CrossQ]


class Walk:
    """
    Episodes of several environments, as SB3 hands them to a buffer, and a record of every transition. Observations are
    ``[environment, n]`` with n different for each state, so that each identifies its transition.
    """

    def __init__(self, buffers, n_envs):
        self.buffers, self.n_envs = buffers, n_envs
        self.rng = np.random.default_rng(0)
        self.n_states = 0
        self.states = [self._state() for _ in range(n_envs)]
        #: Per environment, transitions by age, the oldest first
        self.chains = [[] for _ in range(n_envs)]

    def _state(self):
        self.n_states += 1
        return float(self.n_states)

    def step(self, ends):
        """One row; ``ends`` holds "", "termination", "truncation" or "cut" (a reset nobody reports) per environment."""
        obs, next_obs, dones, infos = [], [], [], []
        actions, rewards = self.rng.uniform(-1, 1, (self.n_envs, 1)), self.rng.normal(size=self.n_envs)
        for env, end in enumerate(ends):
            after = self._state()
            obs.append([env, self.states[env]])
            next_obs.append([env, after])
            dones.append(end in ("termination", "truncation"))
            infos.append({"TimeLimit.truncated": end == "truncation"})
            self.chains[env].append(
                dict(obs=obs[-1], next_obs=next_obs[-1], action=actions[env, 0], reward=rewards[env], end=end)
            )
            self.states[env] = self._state() if end else after
        row = [np.array(obs, np.float32), np.array(next_obs, np.float32), actions, rewards, np.array(dones), infos]
        for buffer in self.buffers:
            buffer.add(*row)

    def target(self, env, start, n, bonus=None):
        """The n-step return from the ``start``-th transition of an environment, step by step, as RLx2 describes it."""
        chain = self.chains[env][start : start + n]
        total, discount = 0.0, 1.0
        for k, transition in enumerate(chain):
            total += discount * transition["reward"]
            discount *= GAMMA
            if transition["end"] or k == len(chain) - 1:
                break
            if bonus is not None:
                total += discount * bonus(transition["next_obs"])
        return total, discount, transition["next_obs"], float(transition["end"] == "termination")

    def check(self, samples, live, n, bonus=None):
        """Each sample is the live transition with its observation, and its return is the slow one."""
        seen = set()
        for i, (env, state) in enumerate(samples.observations.tolist()):
            env = int(env)
            start = next(i for i, transition in enumerate(self.chains[env]) if transition["obs"][1] == state)
            age = len(self.chains[env]) - start
            assert 1 <= age <= live
            seen.add((env, age))
            total, discount, next_obs, done = self.target(env, start, n, bonus)
            assert samples.actions[i].item() == np.float32(self.chains[env][start]["action"])
            assert samples.rewards[i].item() == pytest.approx(total, abs=1e-4)
            assert samples.next_observations[i].tolist() == next_obs
            assert samples.dones[i].item() == done
            if samples.discounts is not None:
                assert samples.discounts[i].item() == pytest.approx(discount, rel=1e-5)
        return seen


def make_buffer(rows, n_envs=1, buffer_class=DynamicNStepReplayBuffer, **kwargs):
    kwargs = {"gamma": GAMMA} | kwargs if buffer_class is not ReplayBuffer else kwargs
    return buffer_class(rows * n_envs, OBSERVATION, ACTION, "cpu", n_envs=n_envs, **kwargs)


def same_samples(first, second):
    """Equal to the bit; plain samples have no discounts."""
    return all(
        one is None or other is None or (one.dtype == other.dtype and th.equal(one, other))
        for one, other in zip(first, second, strict=True)
    )


def seeded(buffer, seed=0, size=64, env=None):
    np.random.seed(seed)
    return buffer.sample(size, env=env)


ENDS = st.sampled_from(["", "", "", "termination", "truncation", "cut"])


@settings(max_examples=80)
@given(st.data(), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_samples_are_what_a_slow_reading_of_the_episodes_gives(data, n_envs, capacity, with_bonus):
    buffer = make_buffer(capacity, n_envs)
    walk = Walk([buffer], n_envs)
    live, max_window = 0, capacity

    def bonus(next_obs):
        return 0.3 * next_obs[1] - next_obs[0]

    if with_bonus:
        buffer.step_bonus = lambda observations: (0.3 * observations[:, 1] - observations[:, 0])[:, None]
    for _ in range(data.draw(st.integers(1, 12), label="operations")):
        operation = data.draw(st.sampled_from(["add", "add", "add", "drop", "limit"]))
        if operation == "add":
            for _ in range(data.draw(st.integers(1, 5))):
                walk.step([data.draw(ENDS) for _ in range(n_envs)])
                live = min(live + 1, max_window)
        elif operation == "drop":
            n_rows = data.draw(st.integers(0, live))
            buffer.drop_oldest(n_rows)
            live -= n_rows
        else:
            buffer.max_window = max_window = data.draw(st.integers(1, capacity))
            live = min(live, max_window)
        assert buffer.window == buffer.size() == live
        if live == 0:
            with pytest.raises(ValueError, match="no live transition"):
                buffer.sample(1)
            continue
        buffer.n_steps = n = data.draw(st.integers(1, 5), label="n")
        seen = walk.check(seeded(buffer, size=40 * live), live, n, bonus if with_bonus else None)
        assert len(seen) >= live * n_envs * 0.8  # all that is live can be drawn


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("handle_timeout_termination", [False, True])
def test_samples_are_stock_ones_to_the_bit_where_stock_has_them(n_envs, normalize, handle_timeout_termination):
    env = None
    if normalize:
        env = VecNormalize(DummyVecEnv([lambda: RandomEnv(n_inputs=2)] * n_envs), clip_reward=1.0)
        env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var = np.array([1.0, 20.0]), np.array([2.0, 90.0]), np.array(2.3)
    kwargs = dict(n_envs=n_envs, handle_timeout_termination=handle_timeout_termination)
    plain = make_buffer(9, buffer_class=ReplayBuffer, **kwargs)
    stock = [make_buffer(9, buffer_class=NStepReplayBuffer, n_steps=n, **kwargs) for n in (2, 3, 7)]
    buffer = make_buffer(9, **kwargs)
    walk = Walk([plain, buffer, *stock], n_envs)
    rng = np.random.default_rng(1)
    for _ in range(25):
        walk.step(rng.choice(["", "", "termination", "truncation"], n_envs))
        buffer.n_steps = 1
        assert same_samples(seeded(buffer, env=env), seeded(plain, env=env))
        for other in stock:
            buffer.n_steps = other.n_steps
            assert same_samples(seeded(buffer, env=env), seeded(other, env=env))


def test_a_reset_that_nobody_reports_ends_a_return():
    """As when ``learn()`` is called a second time: stock would add rewards of the next episode."""
    buffer = make_buffer(10, n_steps=3)
    walk = Walk([buffer], 1)
    for end in ("", "cut", "", ""):
        walk.step([end])
    walk.check(seeded(buffer), 4, 3)
    assert buffer.timeouts[:5, 0].tolist() == [0, 1, 0, 0, 0]
    model = make_model(
        TD3, env=RandomEnv(), replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3, gamma=0.99)
    )
    model.learn(24)
    model.learn(24)
    assert np.flatnonzero(model.replay_buffer.timeouts[:, 0]).tolist() == [23]
    assert np.flatnonzero(model.replay_buffer.dones[:, 0]).tolist() == [9, 19, 33, 43]


def test_dropping_moves_nothing_and_the_window_grows_again():
    buffer = make_buffer(6, n_envs=2)
    walk = Walk([buffer], 2)
    for _ in range(8):
        walk.step(["", ""])
    arrays = {name: value for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    copies = {name: value.copy() for name, value in arrays.items()}
    buffer.drop_oldest(4)
    assert all(vars(buffer)[name] is arrays[name] and np.array_equal(arrays[name], copies[name]) for name in arrays)
    windows = []
    for _ in range(6):
        windows.append(buffer.window)
        walk.step(["", ""])
    assert windows == [2, 3, 4, 5, 6, 6]
    buffer.max_window = 3
    buffer.max_window = 6
    assert buffer.window == 3
    buffer.reset()
    assert buffer.size() == buffer.window == 0


@given(st.integers(1, 3), st.integers(1, 7), st.lists(st.integers(0, 3), min_size=1, max_size=15), st.data())
def test_oldest_transitions_and_their_mean_actions(n_envs, capacity, drops, data):
    buffer = make_buffer(capacity, n_envs)
    walk = Walk([buffer], n_envs)
    live, announced = deque(maxlen=capacity), False
    for i, drop in enumerate(drops):
        mean = np.full((n_envs, 1), i, np.float32) if data.draw(st.booleans()) else None
        announced |= mean is not None
        if mean is not None:
            buffer.set_next_mean_actions(mean)
        walk.step([""] * n_envs)
        newest = [chain[-1] for chain in walk.chains]
        live.append(
            [(one["obs"], np.float32(one["action"]), np.float32(one["action"] if mean is None else i)) for one in newest]
        )
        for _ in range(min(drop, len(live) - 1)):
            live.popleft()
            buffer.drop_oldest(1)
        skip, n = data.draw(st.integers(0, len(live))), data.draw(st.integers(1, 9))
        expected = [transition for row in list(live)[skip:] for transition in row][:n]
        oldest = buffer.oldest(n, skip)
        assert oldest.observations.tolist() == [obs for obs, _, _ in expected]
        assert oldest.actions.flatten().tolist() == [action for _, action, _ in expected]
        if announced:
            assert oldest.mean_actions.flatten().tolist() == [action for _, _, action in expected]
        else:
            assert oldest.mean_actions is None


def test_an_announcement_can_be_taken_back_and_is_never_pickled():
    buffer = make_buffer(4)
    walk = Walk([buffer], 1)
    buffer.set_next_mean_actions(np.array([[5.0]]))
    buffer.set_next_mean_actions(None)
    walk.step([""])
    assert buffer.mean_actions is None
    buffer.set_next_mean_actions(np.array([[5.0]]))
    copy = pickle.loads(pickle.dumps(buffer))
    Walk([copy], 1).step([""])
    assert copy.mean_actions is None


# --- DelayedNStep ---


def replay_kwargs(**kwargs):
    return dict(replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=1, gamma=0.99)) | kwargs


def steps_of_updates(model, total, callback, **kwargs):
    """The step length of every batch that ``train()`` draws."""
    lengths, sample = [], model.replay_buffer.sample

    def watched(*args, **kwargs):
        lengths.append(model.replay_buffer.n_steps)
        return sample(*args, **kwargs)

    model.replay_buffer.sample = watched
    try:
        model.learn(total, callback=callback, **kwargs)
    finally:
        del model.replay_buffer.sample
    return lengths


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_the_delay_counts_gradient_updates(algorithm):
    model = make_model(algorithm, learning_starts=5, train_freq=1, gradient_steps=1, **replay_kwargs())
    lengths = steps_of_updates(model, 25, DelayedNStep(n_steps=4, delay=7))
    assert lengths == [1] * 7 + [4] * 13
    assert model.logger.name_to_value["replay/n_steps"] == 4


@pytest.mark.parametrize(("train_freq", "gradient_steps", "n_envs"), [(2, 3, 1), ((1, "episode"), -1, 1), (2, -1, 2)])
def test_a_call_of_train_is_never_split(train_freq, gradient_steps, n_envs):
    env = DummyVecEnv([RandomEnv] * n_envs)
    model = make_model(TD3, env=env, train_freq=train_freq, gradient_steps=gradient_steps, **replay_kwargs())
    lengths = steps_of_updates(model, 80, DelayedNStep(delay=8))
    per_call = {3: 3, -1: 10 if n_envs == 1 else 4}[gradient_steps]
    one_step = -(-8 // per_call) * per_call
    assert lengths[:one_step] == [1] * one_step
    assert set(lengths[one_step:]) == {3}


def test_no_delay_and_one_step():
    assert set(steps_of_updates(make_model(TD3, **replay_kwargs()), 30, DelayedNStep(delay=0))) == {3}
    assert set(steps_of_updates(make_model(TD3, **replay_kwargs()), 30, DelayedNStep(n_steps=1, delay=0))) == {1}


def test_a_resumed_run_is_in_its_phase_at_once(tmp_path):
    model = make_model(SAC, learning_starts=5, **replay_kwargs())
    callback = DelayedNStep(delay=20)
    assert set(steps_of_updates(model, 20, callback)) == {1}
    model.save(tmp_path / "early")
    model.save_replay_buffer(tmp_path / "buffer")
    assert set(steps_of_updates(model, 20, callback, reset_num_timesteps=False)) == {1, 3}
    model.save(tmp_path / "late")
    early, late = (SAC.load(tmp_path / name, env=RandomEnv()) for name in ("early", "late"))
    lengths, before_the_first_step = [], []

    class FirstRollout(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            before_the_first_step.append(self.model.replay_buffer.n_steps)

    for one in (early, late):
        one.load_replay_buffer(tmp_path / "buffer")
        one.replay_buffer.n_steps = 2
        callbacks = [DelayedNStep(delay=20), FirstRollout()]
        lengths.append(steps_of_updates(one, 20, callbacks, reset_num_timesteps=False))
    assert (before_the_first_step[0], before_the_first_step[-1]) == (1, 3)
    assert lengths[0][:4] == [1] * 4
    assert lengths[0][-1] == 3
    assert set(lengths[1]) == {3}


def slow_soft_target(model, walk, env, start, n):
    """Reward part of RLx2-SAC's target without the last entropy, which stock train() adds."""
    alpha = model.log_ent_coef.exp().item() if model.log_ent_coef is not None else model.ent_coef_tensor.item()

    def bonus(next_obs):
        return -alpha * log_prob_of(th.tensor([next_obs])).item()

    return walk.target(env, start, n, bonus)


def log_prob_of(observations):
    return th.sin(observations[:, 1]) + observations[:, 0]


@pytest.mark.parametrize("algorithm", SOFT)
@pytest.mark.parametrize("ent_coef", [0.3, "auto_0.7"])
def test_entropy_at_every_step(algorithm, ent_coef, monkeypatch):
    class TwoInputs(RandomEnv):
        def __init__(self):
            super().__init__(n_inputs=2)
            self.action_space = ACTION

    buffer = replay_kwargs(replay_buffer_kwargs=dict(gamma=GAMMA))
    model = make_model(algorithm, env=TwoInputs(), ent_coef=ent_coef, gamma=GAMMA, **buffer)
    callback = DelayedNStep(n_steps=4, delay=0, entropy="every_step")
    start_training(model, callback, 100)
    walk = Walk([model.replay_buffer], 1)
    for end in ["", "", "truncation", "", "termination", "", "", "", "", "cut", "", "", "", ""]:
        walk.step([end])
    calls = []

    def action_log_prob(observations):
        calls.append(len(observations))
        return th.zeros(len(observations), 1), log_prob_of(observations)

    monkeypatch.setattr(model.actor, "action_log_prob", action_log_prob)
    samples = seeded(model.replay_buffer)
    assert len(calls) == 1
    for i, (env, state) in enumerate(samples.observations.tolist()):
        start = next(i for i, transition in enumerate(walk.chains[0]) if transition["obs"][1] == state)
        total, _, _, _ = slow_soft_target(model, walk, int(env), start, 4)
        assert samples.rewards[i].item() == pytest.approx(total, abs=1e-4)
    model.replay_buffer.n_steps = 1
    walk.check(seeded(model.replay_buffer), 14, 1)
    assert len(calls) == 1  # one step has no intermediate next observation


def test_entropy_bonus_neither_records_gradients_nor_moves_batch_statistics():
    model = make_model(CrossQ, **replay_kwargs())
    model.learn(30)
    start_training(model, DelayedNStep(delay=0, entropy="every_step"), 100)
    model.policy.set_training_mode(True)
    statistics = {name: value.clone() for name, value in model.actor.named_buffers() if "ra_" in name or "running" in name}
    samples = model.replay_buffer.sample(16)
    assert not samples.rewards.requires_grad
    assert len(statistics) > 0
    assert all(th.equal(model.actor.get_buffer(name), value) for name, value in statistics.items())


def test_bootstrap_entropy_leaves_rewards_alone_and_removes_an_earlier_bonus():
    model = make_model(SAC, **replay_kwargs())
    model.learn(30)
    start_training(model, DelayedNStep(delay=0, entropy="every_step"), 100)
    with_bonus = seeded(model.replay_buffer).rewards
    start_training(model, DelayedNStep(delay=0), 100)
    assert model.replay_buffer.step_bonus is None
    assert not th.equal(seeded(model.replay_buffer).rewards, with_bonus)


# --- DynamicReplayCapacity ---


class DirectRule(BaseCallback):
    """
    The rule once more, on Python lists and with ``predict``; it runs before the callback under test, and says at each step
    how many transitions must be live by then.
    """

    def __init__(self, rule, threshold, every, n_oldest, min_size, max_size, noisy):
        super().__init__()
        self.rule, self.threshold, self.every, self.n_oldest = rule, threshold, every, n_oldest
        self.min_size, self.max_size, self.noisy = min_size, max_size, noisy
        self.live, self.sizes, self.n_drops, self.n_measured = [], [], 0, 0

    def predict(self, observations):
        return self.model.policy.scale_action(self.model.predict(observations, deterministic=True)[0])

    def distance(self):
        obs, actions, means = (np.array(column) for column in zip(*self.live[: self.n_oldest], strict=True))
        policy = self.predict(obs)
        if self.rule == "paper":
            return np.mean([np.sqrt(sum((p - a) ** 2)) for p, a in zip(policy, actions, strict=True)])
        return np.mean((policy - means) ** 2) / 2

    def _on_step(self):
        n_envs = self.training_env.num_envs
        assert self.model.replay_buffer.window * n_envs == len(self.live)
        if self.live and any(t % self.every == 0 for t in range(self.num_timesteps - n_envs + 1, self.num_timesteps + 1)):
            self.n_measured += 1
            size = len(self.live)
            if self.rule == "paper":
                while self.distance() > self.threshold and len(self.live) - n_envs >= self.min_size:
                    del self.live[:n_envs]
            elif self.distance() > self.threshold and size > self.min_size:
                del self.live[: int(0.1 * size // n_envs) * n_envs]
            self.n_drops += size > len(self.live)
        self.sizes.append(len(self.live))
        taken = self.locals["buffer_actions"]
        warm_up = self.num_timesteps - n_envs < self.model.learning_starts
        means = taken if warm_up else self.predict(self.model._last_obs)
        if warm_up or not self.noisy:
            assert np.allclose(means, taken, atol=1e-6)
        self.live += list(zip(self.model._last_obs.copy(), taken, means, strict=True))
        self.live = self.live[-self.max_size :]
        return True


class RangeEnv(RandomEnv):
    """Actions with bounds that are not [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(np.array([-3, 0], np.float32), np.array([3, 8], np.float32))


@pytest.mark.parametrize(("rule", "threshold"), [("code", 0.13), ("paper", 0.8)])
@pytest.mark.parametrize("algorithm", [TD3, SAC])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_rule_against_a_direct_implementation(rule, threshold, algorithm, n_envs):
    noise = dict(action_noise=NormalActionNoise(np.zeros(2), np.full(2, 0.2))) if algorithm is TD3 else {}
    model = make_model(
        algorithm,
        env=DummyVecEnv([RangeEnv] * n_envs),
        learning_rate=0.03,
        learning_starts=30,
        train_freq=4,
        gradient_steps=1,
        **noise,
        **replay_kwargs(),
    )
    arguments = dict(rule=rule, threshold=threshold, every=7, n_oldest=20, min_size=32, max_size=150)
    direct = DirectRule(noisy=True, **arguments)
    model.learn(420, callback=CallbackList([direct, DynamicReplayCapacity(**arguments)]), log_interval=10**6)
    assert 3 < direct.n_drops < direct.n_measured  # the rule was really at work, and really at rest
    assert model.logger.name_to_value["replay/capacity"] == direct.sizes[-1]
    assert "replay/policy_distance" in model.logger.name_to_value


def test_mean_actions_are_the_policys_without_noise():
    """Observations normalised, noise on, and a warm-up: ``DirectRule`` asserts the rest."""
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.3))
    model = make_model(TD3, env=env, action_noise=noise, learning_starts=10, gradient_steps=0, **replay_kwargs())
    model.learn(60, callback=DynamicReplayCapacity(min_size=50))
    buffer = model.replay_buffer
    assert np.array_equal(buffer.mean_actions[:10], buffer.actions[:10])
    assert not np.allclose(buffer.mean_actions[10:60], buffer.actions[10:60])
    # gradient_steps=0: the policy never changed, only the normalisation did
    last = model.policy.predict(env.normalize_obs(buffer.observations[59]), deterministic=True)[0]
    assert np.allclose(buffer.mean_actions[59], last, atol=0.02)


def test_exploration_by_the_policy_during_warm_up_has_mean_actions_too():
    model = make_model(SAC, use_sde=True, use_sde_at_warmup=True, learning_starts=100, **replay_kwargs())
    model.learn(20, callback=DynamicReplayCapacity(min_size=50))
    buffer = model.replay_buffer
    expected = model.policy.predict(buffer.observations[:20, 0], deterministic=True)[0]
    assert np.allclose(buffer.mean_actions[:20, 0], expected, atol=1e-5)
    assert not np.allclose(buffer.mean_actions[:20], buffer.actions[:20], atol=1e-3)


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_the_distance_sees_observations_as_the_policy_does(rule):
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    model = make_model(TD3, env=env, learning_starts=100, **replay_kwargs())
    model.learn(40)
    env.training = False
    env.obs_rms.var *= 0.01  # far from what the observations were stored with
    capacity = DynamicReplayCapacity(rule, threshold=100, every=1, n_oldest=10, min_size=20)
    model.learn(2, callback=capacity, reset_num_timesteps=False, log_interval=10**6)
    measured = model.logger.name_to_value["replay/policy_distance"]
    buffer = model.replay_buffer
    policy = model.predict(env.normalize_obs(buffer.observations[:10, 0]), deterministic=True)[0]
    difference = policy - buffer.actions[:10, 0]
    expected = np.linalg.norm(difference, axis=1).mean() if rule == "paper" else np.mean(difference**2) / 2
    assert measured == pytest.approx(expected, rel=1e-4)


def test_an_announced_step_that_is_never_stored_is_forgotten():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 30

    model = make_model(TD3, action_noise=NormalActionNoise(np.zeros(2), np.full(2, 0.3)), **replay_kwargs())
    model.learn(100, callback=[DynamicReplayCapacity(min_size=50), Stop()])
    model.learn(1)
    buffer = model.replay_buffer
    assert np.array_equal(buffer.mean_actions[29:31], buffer.actions[29:31])


@pytest.mark.parametrize(("rule", "first", "smallest"), [("code", 72, 38), ("paper", 40, 40)])
def test_min_size_in_transitions(rule, first, smallest):
    """The code's rule takes its tenth from anything above the minimum; the paper's stops at the minimum."""
    model = make_model(TD3, env=DummyVecEnv([RandomEnv] * 2), learning_starts=1000, **replay_kwargs())
    model.learn(80)
    sizes = []

    class Sizes(BaseCallback):
        def _on_step(self):
            sizes.append(model.replay_buffer.window * 2)
            return True

    capacity = DynamicReplayCapacity(rule, threshold=1e-6, every=2, n_oldest=10, min_size=40)
    model.learn(40, callback=[capacity, Sizes()])
    assert (sizes[0], min(sizes)) == (first, smallest)


def test_measuring_never_disturbs_training():
    """Stock TD3 with the stock buffer, to the bit, as long as nothing is dropped and targets are 1-step."""
    callbacks = [DelayedNStep(delay=1000), DynamicReplayCapacity(threshold=100, every=1, n_oldest=8, min_size=10)]
    for algorithm in (TD3, SAC):
        stock = make_model(algorithm)
        stock.learn(60)
        model = make_model(algorithm, **replay_kwargs())
        model.learn(60, callback=callbacks)
        assert equal_state(stock, model)


def test_capacity_of_a_resumed_run(tmp_path):
    callback = DynamicReplayCapacity(threshold=1e-6, every=10, n_oldest=8, min_size=10)
    model = make_model(TD3, **replay_kwargs())
    model.learn(60, callback=callback)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = TD3.load(tmp_path / "model", env=RandomEnv())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.window == model.replay_buffer.window < 60
    loaded.learn(16, callback=DynamicReplayCapacity(threshold=100, every=10, min_size=10), reset_num_timesteps=False)
    assert loaded.replay_buffer.window == model.replay_buffer.window + 16


# --- Both, and everything around them ---


@pytest.mark.parametrize("algorithm", OFF_POLICY)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_every_algorithm_trains_with_both(algorithm, n_envs):
    env = DummyVecEnv([lambda: RandomEnv(discrete=algorithm not in CONTINUOUS)] * n_envs)
    model = make_model(algorithm, env=env, policy_kwargs=dict(sparsity=0.5), **replay_kwargs())
    callbacks = [DelayedNStep(delay=6, entropy="every_step" if algorithm in SOFT else "bootstrap")]
    if algorithm in CONTINUOUS:
        callbacks.append(DynamicReplayCapacity("paper", threshold=1e-6, every=10, n_oldest=8, min_size=20, max_size=100))
        callbacks.append(DynamicReplayCapacity("code", threshold=1e-6, every=10, n_oldest=8, min_size=20, max_size=100))
    model.learn(60, callback=callbacks)
    assert model.replay_buffer.n_steps == 3
    assert (model.replay_buffer.window * n_envs < 60) == (algorithm in CONTINUOUS)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert_invariants(model)


def test_images():
    model = make_model(SAC, "Cnn", **replay_kwargs())
    callbacks = [
        DelayedNStep(delay=2, entropy="every_step"),
        DynamicReplayCapacity("paper", threshold=1e-6, every=10, n_oldest=8, min_size=20),
        DynamicReplayCapacity("code", threshold=100, every=10, n_oldest=8, min_size=20),
    ]
    model.learn(32, callback=callbacks)
    assert model.replay_buffer.window < 32


def test_the_buffer_round_trips(tmp_path):
    model = make_model(SAC, **replay_kwargs())
    callbacks = [
        DelayedNStep(delay=2, entropy="every_step"),
        DynamicReplayCapacity(threshold=1e-6, every=10, n_oldest=8, min_size=20, max_size=90),
    ]
    model.learn(120, callback=callbacks)
    buffer = model.replay_buffer
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    loaded = model.replay_buffer
    assert loaded is not buffer
    assert loaded.step_bonus is None
    assert (loaded.window, loaded.max_window, loaded.n_steps, loaded.gamma) == (buffer.window, 90, 3, 0.99)
    assert np.array_equal(loaded.mean_actions, buffer.mean_actions)
    assert same_samples(seeded(loaded), seeded(buffer))
    start_training(model, CallbackList(callbacks), 1000)
    assert loaded.step_bonus is not None


def test_verbose(capsys):
    model = make_model(TD3, **replay_kwargs())
    capacity = DynamicReplayCapacity(threshold=1e-6, every=30, n_oldest=8, min_size=20, verbose=1)
    model.learn(30, callback=[DelayedNStep(delay=3, verbose=1), capacity])
    out = capsys.readouterr().out
    assert "3-step targets from gradient update 5 on" in out
    assert "dropped the 2 oldest transitions, whose policy distance was" in out


# --- What is refused ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DelayedNStep(n_steps=0), r"`n_steps` must be an integer >= 1, got 0"),
        (lambda: DelayedNStep(n_steps=2.0), r"`n_steps` must be an integer >= 1, got 2.0"),
        (lambda: DelayedNStep(n_steps=True), r"`n_steps` must be an integer >= 1, got True"),
        (lambda: DelayedNStep(delay=-1), r"`delay` must be an integer >= 0, got -1"),
        (lambda: DelayedNStep(delay="300_000"), r"`delay` must be an integer >= 0, got '300_000'"),
        (lambda: DelayedNStep(entropy="all"), r"`entropy` must be one of 'bootstrap', 'every_step', got 'all'"),
        (lambda: DynamicReplayCapacity("fifo"), r"`rule` must be one of 'code', 'paper', got 'fifo'"),
        (lambda: DynamicReplayCapacity(threshold=0), r"`threshold` must be a positive number, got 0"),
        (lambda: DynamicReplayCapacity(threshold=float("nan")), r"`threshold` must be a positive number, got nan"),
        (lambda: DynamicReplayCapacity(threshold=None), r"`threshold` must be a positive number, got None"),
        (lambda: DynamicReplayCapacity(every=0), r"`every` must be an integer >= 1, got 0"),
        (lambda: DynamicReplayCapacity(every=1e4), r"`every` must be an integer >= 1, got 10000.0"),
        (lambda: DynamicReplayCapacity(n_oldest=0), r"`n_oldest` must be an integer >= 1, got 0"),
        (lambda: DynamicReplayCapacity(drop_fraction=0), r"`drop_fraction` must be a number in \(0, 1\), got 0"),
        (lambda: DynamicReplayCapacity(drop_fraction=1), r"`drop_fraction` must be a number in \(0, 1\), got 1"),
        (lambda: DynamicReplayCapacity(min_size=0), r"`min_size` must be an integer >= 1, got 0"),
        (lambda: DynamicReplayCapacity(max_size=0, min_size=1), r"`max_size` must be an integer >= 1, got 0"),
        (lambda: DynamicReplayCapacity(min_size=9, max_size=8), r"`min_size`=9 must not be larger than `max_size`=8"),
        (lambda: make_buffer(4, n_steps=0), r"`n_steps` must be an integer >= 1, got 0"),
        (lambda: setattr(make_buffer(4), "n_steps", 1.5), r"`n_steps` must be an integer >= 1, got 1.5"),
        (lambda: make_buffer(4, gamma=1.1), r"`gamma` must be a number in \[0, 1\], got 1.1"),
        (lambda: make_buffer(4, gamma=None), r"`gamma` must be a number in \[0, 1\], got None"),
        (lambda: setattr(make_buffer(4), "max_window", 5), r"`max_window` must be an integer in \[1, 4\], got 5"),
        (lambda: make_buffer(4).drop_oldest(1), r"`n_rows` must be an integer in \[0, 0\], got 1"),
        (lambda: make_buffer(4).oldest(0), r"`n_transitions` must be an integer >= 1, got 0"),
        (lambda: make_buffer(4).oldest(1, 1), r"`skip_rows` must be an integer in \[0, 0\], got 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unsupported_buffers():
    with pytest.raises(NotImplementedError, match=r"optimize_memory_usage=True`: that layout overwrites the last observation"):
        make_buffer(4, optimize_memory_usage=True)
    with pytest.raises(NotImplementedError, match=r"does not support Dict observations: it stores one array"):
        make_model(TD3, "MultiInput", **replay_kwargs())


class GoalEnv(gym.Env):
    observation_space = spaces.Dict({key: OBSERVATION for key in ("observation", "achieved_goal", "desired_goal")})
    action_space = ACTION

    def reset(self, *, seed=None, options=None):
        return {key: np.zeros(2, np.float32) for key in self.observation_space}, {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.zeros(len(achieved_goal))


CAPACITY = dict(every=1, min_size=10)


@pytest.mark.parametrize(
    ("make", "callback", "message"),
    [
        (lambda: make_model(PPO), DelayedNStep(), r"DelayedNStep needs an algorithm with a replay buffer; PPO has none"),
        (
            lambda: make_model(TD3, gamma=0.97),
            DelayedNStep(),
            r"DelayedNStep needs a DynamicNStepReplayBuffer, got ReplayBuffer: make or load the model with "
            r"`replay_buffer_class=sb3_sparse.DynamicNStepReplayBuffer, replay_buffer_kwargs=dict\(n_steps=1, gamma=0.97\)`",
        ),
        (
            lambda: make_model(TD3, n_steps=3),
            DynamicReplayCapacity(**CAPACITY),
            r"DynamicReplayCapacity needs a DynamicNStepReplayBuffer, got NStepReplayBuffer",
        ),
        (lambda: make_model(SAC, "MultiInput"), DelayedNStep(), r"got DictReplayBuffer: Dict observations are not supported"),
        (
            lambda: make_model(SAC, "MultiInput", env=GoalEnv(), replay_buffer_class=HerReplayBuffer, policy_kwargs={}),
            DelayedNStep(),
            r"got HerReplayBuffer: hindsight replay picks goals from whole episodes",
        ),
        (
            lambda: make_model(TD3, gamma=0.97, **replay_kwargs()),
            DelayedNStep(),
            r"the replay buffer's gamma=0.99 must be the model's gamma=0.97: pass "
            r"`replay_buffer_kwargs=dict\(n_steps=1, gamma=0.97\)`",
        ),
        (
            lambda: make_model(DDPG, **replay_kwargs()),
            DelayedNStep(entropy="every_step"),
            r"needs an entropy-regularised algorithm \(SAC, TQC, CrossQ\); DDPG has no entropy term",
        ),
        (
            lambda: make_model(DQN, **replay_kwargs()),
            DelayedNStep(entropy="every_step"),
            r"needs an entropy-regularised algorithm \(SAC, TQC, CrossQ\); DQN has no entropy term",
        ),
        (
            lambda: make_model(DQN, **replay_kwargs()),
            DynamicReplayCapacity(**CAPACITY),
            r"needs continuous actions: DQN acts in Discrete\(3\), where two actions are equal or not, but have no distance",
        ),
        (
            lambda: make_model(TD3, **replay_kwargs()),
            DynamicReplayCapacity(),
            r"`min_size`=100000 must not be larger than the 200 transitions that the replay buffer holds",
        ),
        (
            lambda: make_model(TD3, **replay_kwargs()),
            DynamicReplayCapacity(max_size=201, **CAPACITY),
            r"`max_size`=201 must be from 1 \(one transition of each environment\) to the 200 transitions",
        ),
    ],
)
def test_unsuitable_models(make, callback, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model.learn(5, callback=callback)
    assert model.num_timesteps == 0
