"""Files that nobody vouches for: what models are made of is read, and nothing that a file carries is run."""

import base64
import collections
import io
import json
import pickle
import random
import shutil
import time
import zipfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG, DQN, PPO, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn

import sb3_sparse
from sb3_sparse import sparsify
from sb3_sparse.cli.main import main
from sb3_sparse.conversion.pickles import Called, Named, Unreadable, read_pickle
from sb3_sparse.conversion.plain_values import plain_value
from sb3_sparse.conversion.untrusted import load_untrusted, read_untrusted
from sb3_sparse.policies.algorithms import SparseTD3Policy
from tests.helpers import SUPPORTED, SUPPORTED_IDS, equal_state, make_model, observations, same_actions
from tests.test_old_files import MODELS, OLD


class Hostile:
    """Its pickle writes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (_write, (self.file,))


def _write(file):
    Path(file).write_text("I was here")
    return {}


@pytest.fixture
def no_unpickling(monkeypatch):
    """Whoever unpickles fails."""

    def fail(*_, **__):
        raise AssertionError("a pickle was run")

    for module, names in ((pickle, ("load", "loads")), (cloudpickle, ("load", "loads"))):
        for name in names:
            monkeypatch.setattr(module, name, fail)


# --- What models are made of ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_model_is_read_whole(algorithm, kind, tmp_path, recwarn, no_unpickling):
    model = make_model(algorithm, kind)
    model.save(tmp_path / "model.zip")
    found = load_untrusted(tmp_path / "model.zip")
    assert [str(one.message) for one in recwarn if "left out" in str(one.message)] == []
    assert type(found) is algorithm
    assert type(found.policy) is type(model.policy)
    assert equal_state(model, found)
    assert same_actions(model, found)
    assert (found.observation_space, found.action_space) == (model.observation_space, model.action_space)
    for name in ("policy_kwargs", "learning_rate", "gamma", "train_freq", "seed", "batch_size", "num_timesteps", "n_steps"):
        assert getattr(found, name, None) == getattr(model, name, None)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_earlier_releases(name, recwarn, no_unpickling):
    found = load_untrusted(OLD / f"{name}.zip")
    assert sb3_sparse.sparsity_report(found).to_dict()
    assert [str(one.message) for one in recwarn if "left out" in str(one.message)] == []


def test_it_trains_on(tmp_path, no_unpickling):
    model = TD3("SparseMlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16], sparsity=0.5), learning_starts=10, seed=1)
    model.learn(60)
    model.save(tmp_path / "model.zip")
    state = random.getstate(), np.random.get_state()[1].tobytes(), th.get_rng_state()
    found = load_untrusted(tmp_path / "model.zip", env="Pendulum-v1")
    assert state[:2] == (random.getstate(), np.random.get_state()[1].tobytes())
    assert th.equal(state[2], th.get_rng_state())
    found.learn(60, reset_num_timesteps=False)
    assert found.num_timesteps == 120


def test_hindsight_replay(tmp_path, no_unpickling):
    kwargs = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=2))
    model = DQN("SparseMultiInputPolicy", BitFlippingEnv(4), policy_kwargs=dict(net_arch=[8], sparsity=0.5), **kwargs)
    model.save(tmp_path / "model.zip")
    assert load_untrusted(tmp_path / "model.zip").replay_buffer_class is HerReplayBuffer
    assert load_untrusted(tmp_path / "model.zip", env=BitFlippingEnv(4)).replay_buffer.n_sampled_goal == 2


def test_classes_and_schedules_that_are_known(tmp_path, recwarn, no_unpickling):
    policy_kwargs = dict(net_arch=[16], sparsity=0.5, activation_fn=nn.Tanh, optimizer_class=th.optim.RMSprop)
    rates = dict(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), clip_range=LinearSchedule(0.3, 0.1, 1.0))
    model = PPO("SparseMlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, **rates, tensorboard_log=str(tmp_path / "logs"))
    model.save(tmp_path / "model.zip")
    found = load_untrusted(tmp_path / "model.zip")
    assert found.policy_kwargs == model.policy_kwargs
    assert isinstance(found.policy.optimizer, th.optim.RMSprop)
    for progress in (1.0, 0.7, 0.2):
        assert found.lr_schedule(progress) == model.lr_schedule(progress)
        assert found.clip_range(progress) == model.clip_range(progress)
    assert found.tensorboard_log is None
    assert not [one for one in recwarn if "left out" in str(one.message)]


def test_the_schedule_of_rl_zoo3():
    rl_zoo3_utils = pytest.importorskip("rl_zoo3.utils")
    found = plain_value(cloudpickle.dumps(FloatSchedule(rl_zoo3_utils.linear_schedule("1e-3"))))
    assert found(0.5) == 5e-4


SPACES = [
    spaces.Box(-1, np.inf, (3,), np.float32),
    spaces.Box(0, 255, (2, 3, 4), np.uint8),
    spaces.Box(np.array([-1.0, 0]), np.array([1.0, 5]), dtype=np.float64),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(0, 1, (2,)), c=spaces.Dict(d=spaces.MultiBinary(2))),
    spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces(space, protocol, no_unpickling):
    space.seed(1)
    space.sample()
    assert plain_value(pickle.dumps(space, protocol)) == space


VALUES = [
    None,
    [1, 2.5, "text", b"bytes", True, 10**30],
    {"a": (1, [2]), 3: {4}, (5,): frozenset({6})},
    collections.OrderedDict(b=1, a=2),
    collections.deque([{"r": 1.0}], maxlen=4),
    TrainFreq(4, TrainFrequencyUnit.EPISODE),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.asfortranarray(np.ones((2, 3))),
    np.zeros((0, 4), np.float32),
    np.float32(0.1),
    nn.ReLU,
    NatureCNN,
    SparseTD3Policy,
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values(value, protocol):
    found = plain_value(pickle.dumps(value, protocol))
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert np.array_equal(found, value)
    else:
        assert found == value


@pytest.mark.parametrize(
    "noise",
    [
        NormalActionNoise(np.zeros(2), np.ones(2)),
        VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)), 3),
    ],
    ids=["normal", "Ornstein-Uhlenbeck"],
)
def test_action_noise(noise):
    found = plain_value(cloudpickle.dumps(noise))
    for one in (noise, found):
        np.random.seed(1)
        one.first = one()
    assert np.array_equal(noise.first, found.first)


def test_what_two_places_share_they_share_still():
    shared = [1]
    first, second = plain_value(pickle.dumps([shared, shared]))
    assert first is second


# --- What is not run ---


def with_entry(source, target, name, entry):
    """A copy of a zip whose entry of ``data`` is another."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.namelist():
            content = old.read(part)
            if part == "data":
                data = json.loads(content)
                data[name] = entry
                content = json.dumps(data)
            new.writestr(part, content)
    return target


def pickled(value):
    return {":type:": "whatever", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}


@pytest.fixture
def model_file(tmp_path):
    model = TD3("SparseMlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16], sparsity=0.5), device="cpu")
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def hostile_zips(model_file, tmp_path, wrote):
    """Zips that write a file when they are loaded, by where they carry that."""
    entries = {
        "learning_rate": Hostile(wrote),
        "another": Hostile(wrote),
        "_last_obs": [np.zeros(3), Hostile(wrote)],
        "policy_class": Hostile(wrote),
        "observation_space": Hostile(wrote),
        "policy_kwargs": {"net_arch": [16], "activation_fn": Hostile(wrote)},
    }
    made = {name: with_entry(model_file, tmp_path / f"{name}.zip", name, pickled(value)) for name, value in entries.items()}
    stream = io.BytesIO()
    th.save({"weight": Hostile(wrote)}, stream)
    made["policy.pth"] = tmp_path / "weights.zip"
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(made["policy.pth"], "w") as new:
        for part in old.namelist():
            new.writestr(part, stream.getvalue() if part == "policy.pth" else old.read(part))
    return made


LEFT_OUT = ("learning_rate", "another", "_last_obs")


@pytest.mark.filterwarnings("ignore")
def test_nothing_hostile_is_run(model_file, tmp_path, capsys):
    wrote = tmp_path / "wrote"
    for where, file in hostile_zips(model_file, tmp_path, wrote).items():
        for call in (
            lambda file=file: load_untrusted(file),
            lambda file=file: load_untrusted(file, env="Pendulum-v1"),
            lambda file=file: load_untrusted(file, algorithm="td3"),
            lambda file=file: sparsify(file, 0.7, allow_pickle=False),
            lambda file=file: main(["report", str(file)]),
            lambda file=file: main(["report", str(file), "--algo", "td3", "--format", "json"]),
            lambda file=file: main(["prune", str(file), "--sparsity", "0.7", "-o", str(tmp_path / "new.zip"), "--force"]),
        ):
            try:
                call()
            except (ValueError, SystemExit) as error:
                assert where not in LEFT_OUT or "what only running its pickles would give" in str(error), error
            assert not wrote.exists(), where
        # It would have been: they are not harmless by accident
        if where != "policy.pth":  # Stable-Baselines3 itself reads weights alone
            try:
                TD3.load(file)
            except Exception as error:
                assert wrote.exists(), error
            assert wrote.exists(), where
            wrote.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["learning_rate", "policy_class"])
def test_who_allows_it_gets_it(where, model_file, tmp_path, capsys):
    wrote = tmp_path / "wrote"
    file = hostile_zips(model_file, tmp_path, wrote)[where]
    for command in (["report", str(file)], ["prune", str(file), "--sparsity", "0.7"]):
        wrote.unlink(missing_ok=True)
        with pytest.raises((SystemExit, TypeError, AttributeError, AssertionError)):
            main([*command, "--allow-pickle"])
        assert wrote.exists()


def test_what_is_left_out_is_said(model_file, tmp_path, capsys):
    steep = 3.0
    file = with_entry(model_file, tmp_path / "lambda.zip", "learning_rate", pickled(lambda progress: steep * progress))
    with pytest.warns(UserWarning, match=r"lambda\.zip: left out, .*: `learning_rate` \(made by "):
        found = load_untrusted(file)
    assert found.learning_rate == TD3("MlpPolicy", "Pendulum-v1").learning_rate
    with pytest.warns(UserWarning, match="`learning_rate`"):
        main(["report", str(file)])
    assert "actor" in capsys.readouterr().out
    # A file without it would be another
    with pytest.raises(SystemExit) as refused:
        main(["prune", str(file), "--sparsity", "0.7"])
    assert refused.value.code == 2
    assert "If you trust whoever made the file, allow it: `--allow-pickle`" in capsys.readouterr().err
    assert not (tmp_path / "lambda-pruned.zip").exists()
    main(["prune", str(file), "--sparsity", "0.7", "--allow-pickle"])
    assert TD3.load(tmp_path / "lambda-pruned.zip").learning_rate(0.5) == 1.5


class OwnPolicy(SparseTD3Policy):
    """A policy of somebody's own."""


def test_a_policy_of_ones_own_needs_trust(tmp_path, capsys):
    model = TD3(OwnPolicy, "Pendulum-v1", policy_kwargs=dict(net_arch=[16], sparsity=0.5))
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"`policy_class` is pickled and .*OwnPolicy, no class that is known"):
        load_untrusted(tmp_path / "model.zip")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "model.zip")])
    assert "--allow-pickle" in capsys.readouterr().err
    main(["report", str(tmp_path / "model.zip"), "--allow-pickle"])


def test_methods_are_not_replaced(model_file, tmp_path):
    file = with_entry(model_file, tmp_path / "methods.zip", "_setup_model", pickled(nn.ReLU))
    with pytest.warns(UserWarning, match=r"`_setup_model` \(in the place of a method of TD3\)"):
        load_untrusted(file)


def test_no_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "module_that_writes.py").write_text(f"open({str(tmp_path / 'wrote')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for program in (b"cmodule_that_writes\nname\n.", b"(imodule_that_writes\nname\n.", b"cmodule_that_writes\nname\n(tR."):
        with pytest.raises(Unreadable, match=r"module_that_writes\.name"):
            plain_value(program)
        with pytest.raises((AttributeError, ImportError)):
            pickle.loads(program)
        assert (tmp_path / "wrote").exists()
        (tmp_path / "wrote").unlink()
        import sys

        del sys.modules["module_that_writes"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, r"builtins\.print, no class that is known"),
        (Path, r"pathlib\.Path, no class that is known"),
        ([{"deep": [Path("x")]}], r"\[0\]\.deep\[0\] is made by pathlib\.\w+, nothing that is known"),
        (np.array([object()]), r"the dtype 'O8'"),
        (np.dtype([("a", "f4")]), r"the dtype 'V4'"),
        (lambda: 1, "made by"),
        (th.ones(1), "made by"),
        (spaces.Dict(a=spaces.Text(3)), r"spaces\.a is made by gymnasium\.spaces\.text\.Text"),
        (spaces.Box(0, 1, (1,)).sample, "made by"),
    ],
)
def test_what_cannot_be_read_is_named(value, message):
    with pytest.raises(Unreadable, match=message):
        plain_value(cloudpickle.dumps(value))


def test_what_a_pickle_asks_for_is_written_down():
    node = read_pickle(pickle.dumps(Hostile("file")))
    assert isinstance(node, Called)
    assert (node.full, node.arguments) == (f"{__name__}:_write", ("file",))
    assert isinstance(node.function, Named)


def test_small_pickles_of_large_values():
    """Lists of lists of the same lists: as a pickle a line for each level, written out more than there is room for."""
    value = [1]
    for _ in range(60):
        value = [value, value]
    start = time.process_time()
    assert plain_value(pickle.dumps(value))[0] is not None
    assert time.process_time() - start < 60  # written out it would never end
    value.append(value)
    with pytest.raises(Unreadable, match="a part of itself"):
        plain_value(pickle.dumps(value))
    nested = b"".join([b"]" * 100_000, b"a" * 99_999, b"."])
    with pytest.raises(Unreadable, match="nested too deeply"):
        plain_value(nested)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes(data):
    with pytest.raises(Unreadable) if not data.endswith(b".") else _nothing():
        try:
            plain_value(data)
        except Unreadable:
            raise
        if not data.count(b"."):
            raise AssertionError("it has no end")


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        return kind is None or issubclass(kind, Unreadable)


SOURCE = cloudpickle.dumps([SPACES[0], NormalActionNoise(np.zeros(1), np.ones(1)), collections.deque([1]), nn.ReLU])


@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(SOURCE) - 1), st.integers(0, 255))
def test_any_damage(position, byte):
    damaged = bytearray(SOURCE)
    damaged[position] = byte
    with _nothing():
        plain_value(bytes(damaged))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_files_that_were_cut_off(cut, model_file, tmp_path):
    content = model_file.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ValueError, match=r"cut off|damaged"):
        load_untrusted(tmp_path / "cut.zip")


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("policy_kwargs", [1], "has no policy class"),
        ("policy_class", "MlpPolicy", "has no policy class"),
        ("policy_class", pickled(nn.ReLU), "of no algorithm that is supported"),
        ("observation_space", {":serialized:": "!"}, "`observation_space` is pickled and"),
        ("action_space", pickled(3), "cannot be loaded as a model of TD3"),
    ],
)
def test_data_that_makes_no_model(name, entry, message, model_file, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_untrusted(with_entry(model_file, tmp_path / "other.zip", name, entry))


def test_other_files(tmp_path):
    (tmp_path / "text.zip").write_text("text")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    shutil.copy(tmp_path / "empty.zip", tmp_path / "list.zip")
    with zipfile.ZipFile(tmp_path / "list.zip", "w") as archive:
        archive.writestr("data", "[1]")
        archive.writestr("policy.pth", b"")
    for name, message in (("text", "not a zip file"), ("empty", r"lacks an entry 'policy\.pth'"), ("list", "no dictionary")):
        with pytest.raises(ValueError, match=message):
            load_untrusted(tmp_path / f"{name}.zip")
    with pytest.raises(FileNotFoundError):
        load_untrusted(tmp_path / "missing.zip")
    with pytest.raises(ValueError, match="`algo`='nothing' is unknown"):
        load_untrusted(tmp_path / "text.zip", algorithm="nothing")


def test_tensors_that_no_algorithm_has(tmp_path):
    model = sb3_sparse.sparsify(DDPG("MlpPolicy", "Pendulum-v1"), 0.5)
    model.save(tmp_path / "model.zip")
    stream = io.BytesIO()
    th.save({"policy.actor.mu.0.weight": th.ones(1)}, stream)
    with zipfile.ZipFile(tmp_path / "model.zip") as old, zipfile.ZipFile(tmp_path / "other.zip", "w") as new:
        for part in old.namelist():
            new.writestr(part, stream.getvalue() if part == "pytorch_variables.pth" else old.read(part))
    read = read_untrusted(tmp_path / "other.zip")
    assert read.variables == {}
    assert list(read.left_out) == ["policy.actor.mu.0.weight"]


def test_prune_gives_the_same_file_as_with_pickles(model_file, tmp_path):
    first = sparsify(model_file, 0.8, allow_pickle=False, device="cpu")
    second = sparsify(model_file, 0.8, device="cpu")
    assert equal_state(first, second)
    assert first.policy_kwargs == second.policy_kwargs
    assert np.array_equal(first.predict(observations(first))[0], second.predict(observations(first))[0])
