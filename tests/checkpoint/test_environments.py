"""Environments go on exactly in another object, or it is said that they do not."""

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_sparse.checkpoint.vec_env import restore_vec_env, save_vec_env

MUJOCO = ["Hopper-v4", "Ant-v4", "Humanoid-v4", "HalfCheetah-v5", "Walker2d-v5", "InvertedDoublePendulum-v5"]
PYTHON = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"]


def steps(env, n, seed):
    """Observations, rewards and ends of some random steps."""
    generator = np.random.default_rng(seed)
    found = []
    space = env.action_space
    for _ in range(n):
        actions = (
            [space.low + (space.high - space.low) * generator.random(space.shape, np.float32) for _ in range(env.num_envs)]
            if isinstance(space, spaces.Box)
            else generator.integers(space.n, size=env.num_envs)
        )
        observations, rewards, dones, infos = env.step(np.asarray(actions))
        episodes = [{key: value for key, value in info.get("episode", {}).items() if key != "t"} for info in infos]
        found += [observations, rewards, dones, [info.get("terminal_observation") for info in infos], episodes]
    return found


def equal(first, second):
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return np.array_equal(first, second, equal_nan=True) if isinstance(first, np.ndarray) else first == second


def assert_goes_on(make, n_steps=60, cuts=3):
    """From several moments on, another environment goes on as the first does."""
    first, second = make(), make()
    first.seed(1)
    first.reset()
    second.seed(2)
    second.reset()
    steps(second, 5, 9)
    for cut in range(cuts):
        steps(first, 17 + cut, cut)
        saved = save_vec_env(first)
        assert saved.lost == []
        arrays = {name: np.array(array) for name, array in saved.arrays.items()}
        expected = steps(first, n_steps, 100 + cut)
        restore_vec_env(second, saved.tree, arrays, trusted=False)
        found = steps(second, n_steps, 100 + cut)
        assert equal(found, expected), f"cut {cut}"
    first.close()
    second.close()


@pytest.mark.parametrize("env_id", MUJOCO)
def test_mujoco(env_id):
    pytest.importorskip("mujoco")
    assert_goes_on(lambda: make_vec_env(env_id, 1))


@pytest.mark.parametrize("env_id", PYTHON)
def test_python(env_id):
    assert_goes_on(lambda: make_vec_env(env_id, 2), n_steps=120)


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/Breakout-v5"])
def test_atari(env_id):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")

    def make():
        kwargs = {"repeat_action_probability": 0.25} if env_id.startswith("ALE") else {}
        env = make_vec_env(env_id, 1, wrapper_class=AtariWrapper, env_kwargs={"frameskip": 1, **kwargs})
        return VecTransposeImage(VecFrameStack(env, 4))

    assert_goes_on(make, cuts=2)


def test_positions_and_velocities_are_not_enough():
    """What makes the whole MjData necessary; should it ever pass, less would do."""
    pytest.importorskip("mujoco")
    first, second = (gym.make("Ant-v4") for _ in range(2))
    for env in (first, second):
        env.reset(seed=1)
    first.action_space.seed(0)
    for _ in range(30):
        first.step(first.action_space.sample())
    data = first.unwrapped.data
    second.unwrapped.set_state(data.qpos.copy(), data.qvel.copy())
    action = first.action_space.sample()
    assert not np.array_equal(first.step(action)[0], second.step(action)[0])


def test_a_mujoco_model_that_somebody_changed():
    pytest.importorskip("mujoco")

    def make():
        return make_vec_env("Hopper-v4", 1)

    first, second = make(), make()
    first.reset()
    second.reset()
    model = first.envs[0].unwrapped.model
    model.body_mass[2] *= 1.5
    model.opt.gravity[2] = -5
    model.opt.timestep *= 2
    steps(first, 10, 0)
    saved = save_vec_env(first)
    arrays = {name: np.array(array) for name, array in saved.arrays.items()}
    restore_vec_env(second, saved.tree, arrays, trusted=False)
    assert equal(steps(second, 30, 1), steps(first, 30, 1))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_normalization_and_frames(n_envs):
    def make():
        return VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1", n_envs)), 3)

    assert_goes_on(make, n_steps=230)


def test_processes():
    assert_goes_on(lambda: make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv), cuts=2)


def test_from_processes_into_this_one_and_back():
    kinds = (SubprocVecEnv, DummyVecEnv)
    first, second = (make_vec_env("CartPole-v1", 2, vec_env_cls=kind) for kind in kinds)
    for one, other in ((first, second), (second, first)):
        one.seed(3)
        one.reset()
        other.reset()
        steps(one, 20, 0)
        saved = save_vec_env(one)
        arrays = {name: np.array(array) for name, array in saved.arrays.items()}
        restore_vec_env(other, saved.tree, arrays, trusted=False)
        assert equal(steps(other, 60, 1), steps(one, 60, 1))
    first.close()


# --- Environments of one's own ---


class Walk(gym.Env):
    """Walks at random; what it holds is for each test to say."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, hidden=None):
        self.position = np.zeros(2, np.float32)
        self.history = []
        self.hidden = hidden

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2).astype(np.float32)
        self.history = [self.position]
        return self.position.copy(), {}

    def step(self, action):
        self.position = self.position + self.np_random.normal(size=2).astype(np.float32) * (1 + action)
        self.history.append(self.position)
        is_over = len(self.history) > 30
        return self.position.copy(), float(len(self.history)), is_over, False, {}


class Secret:
    """An object that keeps its state where Python cannot see it."""

    def __init__(self):
        self.generator = iter(range(10**6))

    def __next__(self):
        return next(self.generator)


class Talkative(Walk):
    """Has a secret, and says what it is."""

    def __init__(self):
        super().__init__(iter(range(10**6)))
        self.count = 0

    def step(self, action):
        self.count = next(self.hidden)
        self.position = self.position + np.float32(self.count)
        return self.position.copy(), float(self.count), False, False, {}

    def checkpoint_state(self):
        return {"position": self.position, "count": self.count}

    def restore_checkpoint_state(self, state):
        self.position, self.count = state["position"], state["count"]
        self.hidden = iter(range(self.count + 1, 10**6))


class Noisy(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.total = 0.0
        self.inner = env

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        self.total += float(reward)
        return observation, self.total, *rest


def test_wrappers_of_ones_own():
    assert_goes_on(lambda: DummyVecEnv([lambda: Monitor(Noisy(Walk({"a": [np.ones(2), "text", (1, 2)]})))]))


def test_environments_without_wrappers():
    assert_goes_on(lambda: DummyVecEnv([Walk, Walk]))
    assert_goes_on(lambda: SubprocVecEnv([Walk, Walk]), cuts=1)


def test_an_environment_says_what_it_is_made_of():
    assert_goes_on(lambda: DummyVecEnv([lambda: Monitor(Talkative())]))


def test_what_cannot_be_kept_is_named_and_the_rest_is_kept(tmp_path):
    def make(folder=None):
        return DummyVecEnv([lambda: Monitor(Noisy(Walk(Secret())), None if folder is None else str(folder))])

    first, second = make(tmp_path), make()
    first.seed(4)
    first.reset()
    steps(first, 40, 0)
    saved = save_vec_env(first)
    assert len(saved.lost) == 1
    assert "env 0: env/2.hidden.generator is a builtins.range_iterator" in saved.lost[0]
    arrays = {name: np.array(array) for name, array in saved.arrays.items()}
    second.reset()
    restore_vec_env(second, saved.tree, arrays, trusted=False)
    # Its generator goes on, and its wrappers know what they knew
    monitors = [env.envs[0] for env in (first, second)]
    assert monitors[1].get_total_steps() == 40
    assert monitors[1].get_episode_rewards() == monitors[0].get_episode_rewards() != []
    assert np.array_equal(first.reset(), second.reset())


def test_box2d_is_lost():
    pytest.importorskip("Box2D")
    env = make_vec_env("LunarLander-v3", 1)
    env.reset()
    assert "world is a Box2D" in save_vec_env(env).lost[0]


class Rows(gym.Env):
    """An array of which it keeps a view: as two arrays they would no longer change together."""

    observation_space, action_space = Walk.observation_space, Walk.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.table = np.zeros((3, 2), np.float32)
        self.row = self.table[1]
        return self.row.copy(), {}

    def step(self, action):
        self.table += 1
        return self.row.copy(), 0.0, False, False, {}


def test_a_view_is_not_silently_cut_off():
    env = DummyVecEnv([Rows])
    env.reset()
    assert "an array of which another is a view" in save_vec_env(env).lost[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_vec_env("Acrobot-v1", 2), "the run's is Monitor of TimeLimit .*CartPoleEnv.*given is .*AcrobotEnv"),
        (lambda: make_vec_env("CartPole-v1", 3), "the run has 2 environments, 3 were given"),
        (
            lambda: VecNormalize(make_vec_env("CartPole-v1", 2)),
            "the run's is DummyVecEnv, the one that was given is VecNormalize",
        ),
        (lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), "the run's is Monitor of TimeLimit"),
    ],
)
def test_another_environment_is_refused(make, message):
    env = make_vec_env("CartPole-v1", 2)
    env.reset()
    saved = save_vec_env(env)
    other = make()
    other.reset()
    before = save_vec_env(other)
    with pytest.raises(ValueError, match=message):
        restore_vec_env(other, saved.tree, saved.arrays, trusted=False)
    assert equal(list(save_vec_env(other).arrays.values()), list(before.arrays.values()))


def test_taking_the_state_changes_nothing():
    for env_id in ("Ant-v4", "CartPole-v1"):
        envs = [make_vec_env(env_id, 1, seed=5) for _ in range(2)]
        for env in envs:
            env.reset()
        for number in range(10):
            save_vec_env(envs[0])
            assert equal(steps(envs[0], 7, number), steps(envs[1], 7, number))


def test_monitor_files_go_on(tmp_path):
    def make(name):
        return make_vec_env("CartPole-v1", 1, seed=1, monitor_dir=str(tmp_path / name))

    first = make("first")
    first.reset()
    steps(first, 100, 0)
    saved = save_vec_env(first)
    arrays = {name: np.array(array) for name, array in saved.arrays.items()}
    at_checkpoint = (tmp_path / "first" / "0.monitor.csv").read_text()
    steps(first, 100, 1)
    # A process that goes on opens the file anew, which empties it
    second = make("first")
    second.reset()
    restore_vec_env(second, saved.tree, arrays, trusted=False)
    assert Path(tmp_path / "first" / "0.monitor.csv").read_text() == at_checkpoint
    steps(second, 100, 1)
    lines = (tmp_path / "first" / "0.monitor.csv").read_text().splitlines()
    assert lines[: len(at_checkpoint.splitlines())] == at_checkpoint.splitlines()
    assert len(lines) - 2 == len(first.envs[0].get_episode_rewards()) > len(at_checkpoint.splitlines()) - 2


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
