"""Replay buffers as segments: what is read is what was there, and what is written is what is new."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse import DynamicNStepReplayBuffer
from sb3_sparse.checkpoint import replay
from sb3_sparse.checkpoint.names import CannotEncode, Names
from sb3_sparse.checkpoint.plain import Decoder, Encoder
from sb3_sparse.checkpoint.replay import ReplayRecorder, Segment, read_replay, row_arrays
from sb3_sparse.checkpoint.store import Store

BOX = spaces.Box(-1, 1, (3,))
DICT = spaces.Dict(a=BOX, image=spaces.Box(0, 255, (2, 2), np.uint8))
ACTIONS = spaces.Box(-1, 1, (2,))


class Prioritized(ReplayBuffer):
    """What somebody may write: a priority for each row, changed all the time, and old rows too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priorities = np.ones(self.buffer_size)
        self.largest = 1.0

    def add(self, *args):
        super().add(*args)
        self.largest += 0.5
        self.priorities[(self.pos * 7) % self.buffer_size] = self.largest
        self.observations[(self.pos * 3) % self.buffer_size] *= 0.5


class Flags(ReplayBuffer):
    """Has an attribute that is no data."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rule = iter([1])


def her_env():
    return DummyVecEnv([lambda: BitFlippingEnv(n_bits=3)] * 1)


KINDS = {
    "plain": lambda size, n: ReplayBuffer(size, BOX, ACTIONS, n_envs=n),
    "n-step": lambda size, n: NStepReplayBuffer(size, BOX, ACTIONS, n_envs=n, n_steps=3, gamma=0.9),
    "dynamic": lambda size, n: DynamicNStepReplayBuffer(size, BOX, ACTIONS, n_envs=n, n_steps=2, gamma=0.9),
    "dict": lambda size, n: DictReplayBuffer(size, DICT, ACTIONS, n_envs=n),
    "one array": lambda size, n: ReplayBuffer(
        size, BOX, ACTIONS, n_envs=n, optimize_memory_usage=True, handle_timeout_termination=False
    ),
    "prioritized": lambda size, n: Prioritized(size, BOX, ACTIONS, n_envs=n),
}


def add(buffer, generator, done=None):
    n = buffer.n_envs
    space = buffer.observation_space

    def observation():
        one = (
            {key: generator.integers(0, 99, (n, *part.shape)).astype(part.dtype) for key, part in space.items()}
            if isinstance(space, spaces.Dict)
            else generator.normal(size=(n, 3)).astype(np.float32)
        )
        return one

    # Often the same as the next, as in a training
    previous = getattr(buffer, "_previous", None)
    first = observation() if previous is None or generator.random() < 0.1 else previous
    following = observation()
    object.__setattr__(buffer, "_previous", following)
    dones = generator.random(n) < 0.1
    infos = [
        {"TimeLimit.truncated": bool(generator.random() < 0.5 and done), "count": int(generator.integers(9))} for done in dones
    ]
    buffer.add(first, following, generator.normal(size=(n, 2)).astype(np.float32), generator.normal(size=n), dones, infos)
    object.__delattr__(buffer, "_previous")
    return following


def written(recorder, buffer, timesteps):
    encoder = Encoder()
    node = recorder.record(buffer, timesteps, encoder)
    return encoder.finish(node), {name: np.array(array) for name, array in encoder.arrays.items()}


def read(store, node, arrays, buffer):
    return read_replay(buffer, node, store, Decoder(node, arrays, Names(trusted=False, packages=frozenset({"tests"}))))


def assert_equal(found, expected):
    """Everything that can ever be looked at."""
    names = {name for name in vars(expected) if name not in ("_next_mean_actions", "step_bonus", "env", "device")}
    for name in names:
        first, second = getattr(found, name), getattr(expected, name)
        if isinstance(first, dict):
            assert all(np.array_equal(first[key], second[key]) for key in second), name
        elif isinstance(first, np.ndarray) and first.dtype.hasobject:
            assert first.tolist() == second.tolist()
        elif isinstance(first, np.ndarray):
            assert np.array_equal(first, second), name
        else:
            assert first == second, name


@pytest.mark.parametrize("kind", KINDS)
@given(
    size=st.integers(2, 30),
    n_envs=st.sampled_from([1, 2]),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    largest=st.sampled_from([200, 2**26]),
)
@settings(max_examples=12)
def test_what_is_read_is_what_was_there(tmp_path_factory, kind, size, n_envs, counts, largest):
    size, block, limit = size * n_envs, replay._BLOCK, replay._LARGEST
    replay._BLOCK, replay._LARGEST = 4, largest
    try:
        store = Store(tmp_path_factory.mktemp("store"))
        (store.folder / "blobs").mkdir()
        buffer, recorder, generator = KINDS[kind](size, n_envs), ReplayRecorder(store), np.random.default_rng(0)
        timesteps = 0
        for count in counts:
            for _ in range(count):
                if kind == "dynamic" and generator.random() < 0.3:
                    buffer.set_next_mean_actions(generator.normal(size=(n_envs, 2)))
                add(buffer, generator)
                timesteps += n_envs
            if kind == "dynamic":
                buffer.drop_oldest(buffer.window // 4)
            node, arrays = written(recorder, buffer, timesteps)
            found = KINDS[kind](size, n_envs)
            segments = read(store, node, arrays, found)
            assert_equal(found, buffer)
        # Whoever has read it goes on writing where the other stopped
        other = ReplayRecorder(store)
        other.follow(found, segments, timesteps)
        add(found, generator)
        node, arrays = written(other, found, timesteps + n_envs)
        again = KINDS[kind](size, n_envs)
        read(store, node, arrays, again)
        assert_equal(again, found)
    finally:
        replay._BLOCK, replay._LARGEST = block, limit


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "checkpoints")
    (store.folder / "blobs").mkdir(parents=True)
    return store


def _bytes(store):
    return sum(file.stat().st_size for file in (store.folder / "blobs").iterdir())


def test_a_checkpoint_costs_what_is_new(store):
    buffer, recorder, generator = ReplayBuffer(20_000, BOX, ACTIONS), ReplayRecorder(store), np.random.default_rng(0)
    sizes = []
    for step in range(1, 31):
        for _ in range(1000):
            add(buffer, generator)
        before = _bytes(store)
        node, _ = written(recorder, buffer, 1000 * step)
        sizes.append(_bytes(store) - before)
    row = sum(array[0].nbytes for array in row_arrays(buffer).values())
    # A thousand rows, and at both ends a block of each of the small arrays
    assert max(sizes) < 1000 * row + 3 * 2 * replay._BLOCK * 4 + 5000
    # When the ring has gone round, what was overwritten is no longer needed
    assert len(node["segments"]) < 50
    assert sum(segment["n_rows"] for segment in node["segments"]) <= 21_000
    written(recorder, buffer, 30_000)
    assert _bytes(store) == sum(sizes)


def test_what_somebody_else_did_is_seen(store):
    buffer, recorder, generator = ReplayBuffer(50, BOX, ACTIONS), ReplayRecorder(store), np.random.default_rng(0)

    def check(timesteps):
        node, arrays = written(recorder, buffer, timesteps)
        found = ReplayBuffer(50, BOX, ACTIONS)
        read(store, node, arrays, found)
        assert_equal(found, buffer)

    for _ in range(30):
        add(buffer, generator)
    check(30)
    for _ in range(7):  # rows that were no steps
        add(buffer, generator)
    check(30)
    for _ in range(50):  # once around: the position says nothing
        add(buffer, generator)
    check(80)
    buffer.reset()
    buffer.observations[:] = 0
    for name in ("next_observations", "actions", "rewards", "dones", "timeouts"):
        getattr(buffer, name)[:] = 0
    check(80)
    add(buffer, generator)
    check(81)
    buffer = ReplayBuffer(50, BOX, ACTIONS)  # as load_replay_buffer() does
    add(buffer, generator)
    check(82)
    check(0)  # learn() counts from 0 again


@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_hindsight(store, copy_info_dict):
    env = her_env()

    def make():
        kwargs = dict(n_sampled_goal=2, copy_info_dict=copy_info_dict)
        return HerReplayBuffer(24, env.observation_space, spaces.Discrete(3), env, **kwargs)

    buffer, recorder, generator = make(), ReplayRecorder(store), np.random.default_rng(0)
    observation = env.reset()
    for step in range(1, 70):
        action = generator.integers(0, 3, 1)
        following, rewards, dones, _ = env.step(action)
        buffer.add(observation, following, action, rewards, dones, [{"step": step, "array": np.ones(2) * step}])
        observation = following
        if step % 9 == 0 or step > 60:
            node, arrays = written(recorder, buffer, step)
            found = make()
            read(store, node, arrays, found)
            for name in ("ep_start", "ep_length", "_current_ep_start", "rewards", "pos", "full", "dones"):
                assert np.array_equal(getattr(found, name), getattr(buffer, name)), name
            if copy_info_dict:
                assert repr(found.infos.tolist()) == repr(buffer.infos.tolist())
            if buffer.ep_length.any():
                for one in (found, buffer):
                    np.random.seed(step)
                    one.last = one.sample(10)
                assert all(
                    first.equal(second) if not isinstance(first, dict) else all(first[key].equal(second[key]) for key in first)
                    for first, second in zip(found.last[:-1], buffer.last[:-1], strict=True)
                )
                for one in (found, buffer):
                    del one.last


def test_an_attribute_that_is_no_data_is_named():
    with pytest.raises(CannotEncode, match=r"replay_buffer\.rule is a builtins\.list_iterator"):
        ReplayRecorder.plain_state(Flags(10, BOX, ACTIONS), Encoder())
    buffer = ReplayBuffer(10, BOX, ACTIONS)
    buffer.things = np.array([object()] * 10)
    with pytest.raises(CannotEncode, match=r"replay_buffer\.things is an array of objects"):
        ReplayRecorder.plain_state(buffer, Encoder())


def test_another_class_of_buffer_is_refused(store):
    node, arrays = written(ReplayRecorder(store), ReplayBuffer(10, BOX, ACTIONS), 0)
    with pytest.raises(ValueError, match="the run's replay buffer is a ReplayBuffer, the model's is a NStepReplayBuffer"):
        read(store, node, arrays, KINDS["n-step"](10, 1))


def test_segments_that_nothing_is_left_of():
    def segment(name, n_rows, *blocks):
        return Segment(name, 0, n_rows, ["rows:actions", *(f"block {block}:dones" for block in blocks)])

    segments = [segment("a", 5, 0), segment("b", 5, 0, 1), segment("c", 0, 0), segment("d", 5)]
    assert [one.blob for one in replay._needed(segments, 15)] == ["a", "b", "c", "d"]
    # Rows of d and b are enough; the only block that nobody overwrote is in b
    assert [one.blob for one in replay._needed(segments, 10)] == ["b", "c", "d"]
    assert [one.blob for one in replay._needed(segments, 5)] == ["b", "c", "d"]
    assert [one.blob for one in replay._needed([segment("a", 5, 0), segment("b", 5, 0)], 5)] == ["b"]


def test_what_the_constructor_makes_is_not_written(store):
    """Nothing that a new buffer has anyway, and that could be another on the other side."""
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=100)
    node, arrays = written(ReplayRecorder(store), model.replay_buffer, 0)
    assert set(node["state"]) == {
        *("buffer_size", "action_dim", "pos", "full", "n_envs", "optimize_memory_usage", "handle_timeout_termination"),
    }
    assert arrays == {}
