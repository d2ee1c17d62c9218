"""A training that was broken off and goes on ends with the same bits as the one that was not."""

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

import sb3_sparse
from sb3_sparse import SET, GradualPruning, MaskRefresh, QuantizationAware, RigL, RunCheckpoint, SparsityLogger
from sb3_sparse.checkpoint.callback_state import constructor_arguments
from sb3_sparse.checkpoint.resuming import find_store, open_checkpoint
from sb3_sparse.checkpoint.store import Store
from sb3_sparse.engine import native
from sb3_sparse.engine.crossover import crossovers
from tests.checkpoint.breaking import Crash, CrashAt, let_go, run_with_crashes
from tests.checkpoint.subjects import Subject, everything
from tests.checkpoint.test_environments import Secret, Walk
from tests.helpers import equal_state

SUBJECTS = {
    "TD3, rlx2": Subject("td3", steps=260),
    "PPO, four environments": Subject("ppo", env="CartPole-v1", method="rigl", n_envs=4),
}
MORE_SUBJECTS = {
    "DQN, compress": Subject("dqn", env="CartPole-v1", method="compress", steps=360, evaluate_every=100),
    "TD3, rlx2, accelerated": Subject("td3", steps=260, accelerated=True),
    "TD3, ds, accelerated": Subject("td3", method="ds", accelerated=True),
    "SAC, ds, accelerated": Subject("sac", method="ds", accelerated=True),
    "SAC, compress, accelerated": Subject("sac", method="compress", accelerated=True),
    "DQN, compress, accelerated": Subject(
        "dqn", env="CartPole-v1", method="compress", steps=360, evaluate_every=100, accelerated=True
    ),
    "RecurrentPPO": Subject("ppo_lstm", method="lstm", steps=200),
    "SAC, ds, Ant": Subject("sac", env="Ant-v4", method="ds"),
    "SAC, rnm, Hopper": Subject("sac", env="Hopper-v4", method="rnm"),
    "SAC, compress": Subject("sac", method="compress"),
    "SAC, plad": Subject("sac", method="plad"),
    "TD3, tar": Subject("td3", method="tar"),
    "SAC, exploration by gSDE": Subject("sac", method="sde", kwargs={"train_freq": 8, "sde_sample_freq": 3}),
    "PPO, exploration by gSDE": Subject("ppo", method="sde"),
    "PPO, new matrices in a rollout": Subject("ppo", method="sde", kwargs={"sde_sample_freq": 4}),
    "A2C": Subject("a2c", method="rigl"),
    "PPO, Hopper": Subject("ppo", env="Hopper-v4", method="rigl"),
    "PPO, normalized frames": Subject("ppo", method="rigl", frames=3, normalize=True, n_envs=2),
    "PPO, pruned and quantized": Subject("ppo", method="prune and quantize", steps=600),
    "TD3, Ornstein-Uhlenbeck": Subject("td3", method="noise"),
    "TD3, Ornstein-Uhlenbeck, four environments": Subject("td3", method="noise", n_envs=4),
    "TD3, normalized": Subject("td3", method="rigl", normalize=True),
    "TD3, processes": Subject("td3", method="rigl", n_envs=2, subprocesses=True),
    "TD3, whole episodes": Subject(
        "td3", method="rigl", steps=900, kwargs={"train_freq": (1, "episode"), "gradient_steps": 20}
    ),
    "TD3, n-step": Subject("td3", method="rigl", kwargs={"n_steps": 3}),
    "TQC": Subject("tqc", method="rigl"),
    "QR-DQN": Subject("qrdqn", env="CartPole-v1", method="rigl", n_envs=2),
    "stock TD3, Humanoid": Subject("td3", env="Humanoid-v5", method="stock"),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(expected) > 100


def check(subject, tmp_path):
    whole = run_with_crashes(subject, tmp_path / "whole", [])
    third, two_thirds = subject.steps // 3, subject.steps * 2 // 3 + 7
    assert_same(run_with_crashes(subject, tmp_path / "broken", [third, two_thirds]), whole)


@pytest.mark.parametrize("name", SUBJECTS)
def test_goes_on_to_the_same_bits(name, tmp_path):
    check(SUBJECTS[name], tmp_path)


@pytest.mark.expensive
@pytest.mark.parametrize("name", MORE_SUBJECTS)
def test_goes_on_to_the_same_bits_everywhere(name, tmp_path):
    check(MORE_SUBJECTS[name], tmp_path)


@pytest.mark.parametrize(("method", "accelerated"), [("rigl", False), ("ds", True)])
def test_taking_checkpoints_changes_nothing(method, accelerated, tmp_path):
    often, seldom = (
        Subject("td3", method=method, steps=100, every=every, evaluate_every=60, accelerated=accelerated)
        for every in (3, 10_000)
    )
    first, second = (run_with_crashes(one, tmp_path / str(one.every), []) for one in (often, seldom))
    for name in [name for name in first if name.startswith("RunCheckpoint/")]:
        del first[name], second[name]
    assert_same(first, second)


@pytest.mark.parametrize("n_envs", [pytest.param(1, marks=pytest.mark.expensive), 3])
def test_on_policy_in_the_middle_of_a_rollout(n_envs, tmp_path):
    """Rollouts of 64 steps, checkpoints at others than their ends."""
    subject = Subject("ppo", env="CartPole-v1", method="rigl", n_envs=n_envs, steps=300 * n_envs, every=25 * n_envs)
    subject.kwargs["n_steps"] = 64
    whole = run_with_crashes(subject, tmp_path / "whole", [])
    broken = tmp_path / "broken"
    assert_same(run_with_crashes(subject, broken, [110 * n_envs, 240 * n_envs]), whole)
    rows = [Store(broken / "checkpoints").read(step).content.tree["rollout"]["n_rows"] for step in find_store(broken).steps()]
    assert any(0 < n_rows < 64 for n_rows in rows)


def test_on_policy_in_a_rollout_that_goes_past_the_end(tmp_path):
    """The training ends with the rollout: 64 steps later than the checkpoint after its last step but one."""
    subject = Subject("ppo", env="CartPole-v1", method="rigl", steps=200, every=50, kwargs={"n_steps": 64})
    whole = run_with_crashes(subject, tmp_path / "whole", [])
    broken = tmp_path / "broken"
    assert_same(run_with_crashes(subject, broken, [230]), whole)
    assert find_store(broken).steps() == [200, 250]


# --- What is not in the subjects ---


def train_and_crash(model, callbacks, steps, crash_at, **kwargs):
    with pytest.raises(Crash):
        model.learn(steps, callback=[*callbacks, CrashAt(crash_at)], **kwargs)
    let_go(callbacks)


def two_ways(make_model, make_env, make_callbacks, tmp_path, *, steps, crash_at):
    """Models and callbacks of a training that was not broken off, and of one that was."""
    whole, own = make_model(make_env()), make_callbacks(tmp_path / "whole")
    whole.learn(steps, callback=[*own, CrashAt(None)])
    callbacks = make_callbacks(tmp_path / "broken")
    train_and_crash(make_model(make_env()), callbacks, steps, crash_at)
    callbacks = [*make_callbacks(tmp_path / "broken"), CrashAt(None)]
    broken = sb3_sparse.resume(tmp_path / "broken", make_env(), callbacks)
    return (whole, own), (broken, callbacks)


def small(algorithm, env, policy="SparseMlpPolicy", **kwargs):
    policy_kwargs = {"net_arch": [16], **({"sparsity": 0.5} if policy.startswith("Sparse") else {})}
    arguments = dict(learning_starts=20, buffer_size=200, batch_size=8, train_freq=1, gradient_steps=1)
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=2, device="cpu", **(arguments | kwargs))


def test_hindsight_replay(tmp_path):
    def make_model(env):
        kwargs = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=dict(n_sampled_goal=2))
        return small(DQN, env, "SparseMultiInputPolicy", **kwargs, learning_starts=30)

    first, second = two_ways(
        make_model,
        lambda: DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, max_steps=4)] * 1),
        lambda folder: [RigL(every=5, drop_fraction=0.3), RunCheckpoint(20, folder=folder)],
        tmp_path,
        steps=110,
        crash_at=77,
    )
    assert equal_state(first[0], second[0])
    assert np.array_equal(first[0].replay_buffer.ep_length, second[0].replay_buffer.ep_length)
    assert first[1][0].events == second[1][0].events != []


def test_an_environment_that_cannot_be_restored(tmp_path):
    """Its episode begins again, and the one before it is one that was cut off; everything else is there."""
    make_env = lambda: DummyVecEnv([lambda: Walk(Secret())])  # noqa: E731
    callbacks = [RunCheckpoint(20, folder=tmp_path)]
    with pytest.warns(UserWarning, match=r"cannot be restored \(env 0: .*range_iterator\): after a resume its episode begins"):
        train_and_crash(small(DQN, make_env()), callbacks, 100, 50)
    with pytest.warns(UserWarning, match="cannot be restored"):
        model = sb3_sparse.resume(tmp_path, make_env(), [RunCheckpoint(20, folder=tmp_path), CrashAt(None)])
    assert model.num_timesteps == 100
    assert model.replay_buffer.timeouts[39, 0] == 1
    assert model.replay_buffer.pos == 100
    # The episode's first observation is what the next row starts from, not what the last one ended with
    assert not np.array_equal(model.replay_buffer.observations[40], model.replay_buffer.next_observations[39])


def test_without_callbacks_they_are_made_anew(tmp_path):
    make_callbacks = lambda folder: [  # noqa: E731
        RigL(every=5, drop_fraction=0.3, stop=0.8),
        SparsityLogger(),
        QuantizationAware(start=0.5),
        RunCheckpoint(20, folder=folder),
    ]
    whole = small(TD3, "Pendulum-v1")
    whole.learn(120, callback=make_callbacks(tmp_path / "whole"))
    callbacks = make_callbacks(tmp_path / "broken")
    model = small(TD3, "Pendulum-v1")
    with pytest.raises(Crash):
        model.learn(120, callback=[*callbacks, CrashAt(90)])
    let_go(callbacks)
    with pytest.raises(ValueError, match="the run had the callback CrashAt, which cannot be made from the checkpoint: give"):
        sb3_sparse.resume(tmp_path / "broken", "Pendulum-v1")
    # Of a run without it
    broken = small(TD3, "Pendulum-v1")
    callbacks = make_callbacks(tmp_path / "other")
    callbacks[-1]._write = crash_after(callbacks[-1]._write, 4)
    with pytest.raises(Crash):
        broken.learn(120, callback=callbacks)
    let_go(callbacks)
    resumed = sb3_sparse.resume(tmp_path / "other", "Pendulum-v1")
    assert equal_state(whole, resumed)
    assert resumed.num_timesteps == 120


def crash_after(write, n):
    calls = []

    def wrapped():
        write()
        calls.append(1)
        if len(calls) == n:
            raise Crash

    return wrapped


def test_the_report_in_the_log_is_of_the_same_moments(tmp_path):
    """
    It is made anew where masks have moved since, which layers count anew in every process; and they move between a rollout's
    end, when the report is made, and a checkpoint.
    """
    subject = Subject("ppo", env="Ant-v4", method="rigl", steps=320, every=25, evaluate_every=50)
    whole = run_with_crashes(subject, tmp_path / "whole", [])
    for crash in (60, 110):
        assert_same(run_with_crashes(subject, tmp_path / str(crash), [crash, crash + 130]), whole)


@pytest.mark.parametrize(
    "callback",
    [
        SET(every=3, drop_fraction=0.2, sign_split=True, networks="actor"),
        RigL(every=3, drop_fraction=0.2, stop=0.5),
        MaskRefresh(every=3, rule="ste"),
        GradualPruning({"actor": 0.5}, updates=7),
        QuantizationAware(bits=4, exempt_layers=["last"]),
        sb3_sparse.DelayedNStep(3, delay=9),
        sb3_sparse.DynamicReplayCapacity(min_size=30),
        SparsityLogger(),
        CheckpointCallback(5, "somewhere"),
        RunCheckpoint(5, minutes=2.0),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_arguments_are_read_off_a_callback(callback):
    arguments = constructor_arguments(callback)
    assert arguments is not None
    if not any(isinstance(value, (dict, list)) for value in arguments.values()):
        again = constructor_arguments(type(callback)(**arguments))
        assert again == arguments


def test_no_arguments_can_be_read_off_an_evaluation():
    assert constructor_arguments(EvalCallback(gym.make("Pendulum-v1"))) is None


def test_the_run_checkpoint_of_the_run_is_put_in_its_place(tmp_path):
    callbacks = [CrashAt(50), RunCheckpoint(20, keep=3, folder=tmp_path), SparsityLogger()]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    model = sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None), SparsityLogger()])
    assert model.num_timesteps == 100
    # With the arguments it had
    assert find_store(tmp_path).steps() == [40, 60, 80]


def test_only_a_run_checkpoint(tmp_path):
    callback = RunCheckpoint(20, folder=tmp_path)
    callback._write = crash_after(callback._write, 2)
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1", "MlpPolicy").learn(100, callback=callback)
    let_go([callback])
    whole = small(TD3, "Pendulum-v1", "MlpPolicy").learn(100)
    assert equal_state(whole, sb3_sparse.resume(tmp_path, "Pendulum-v1"))


def test_a_damaged_checkpoint_is_named_and_the_previous_taken(tmp_path):
    callbacks = [CrashAt(70), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    file = tmp_path / "checkpoints" / "step-000000000060" / "arrays.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"refused: .*step-000000000060/arrays\.npz is torn: 1000 bytes of"):
        model = sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)])
    whole = small(TD3, "Pendulum-v1").learn(100)
    assert equal_state(whole, model)


def test_a_segment_that_is_not_what_was_written(tmp_path):
    callbacks = [CrashAt(70), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    store = find_store(tmp_path)

    def damage(step, index):
        file = store.folder / "blobs" / store.read(step).content.tree["replay"]["segments"][index]["blob"]
        data = bytearray(file.read_bytes())
        data[100] ^= 4
        file.write_bytes(data)

    env = make_vec_env("Pendulum-v1")
    damage(60, -1)  # of the last checkpoint alone
    with pytest.warns(UserWarning, match="refused: .* is not what was written: its SHA-256 is another"):
        model, _ = open_checkpoint(store, env, device="cpu", allow_pickle=True)
    assert model.num_timesteps == 40
    damage(40, 0)  # of both
    with (
        pytest.warns(UserWarning, match="refused"),
        pytest.raises(ValueError, match=r"no checkpoint can be used: .*; .*is not what was written"),
    ):
        open_checkpoint(store, env, device="cpu", allow_pickle=True)


@pytest.mark.parametrize(
    ("env", "callback", "message"),
    [
        (
            "Pendulum-v1",
            [CrashAt(None), RigL(every=6, drop_fraction=0.3)],
            "`every` of RigL is not what it was in the run.*with 6",
        ),
        ("Pendulum-v1", [RigL(every=5, drop_fraction=0.3)], "callbacks must be those of the run: it had .*CrashAt"),
        ("Pendulum-v1", [CrashAt(None), SET(every=5, drop_fraction=0.3)], "it had .*RigL .*got .*SET"),
        ("MountainCarContinuous-v0", [CrashAt(None), RigL(every=5, drop_fraction=0.3)], "Observation spaces do not match"),
    ],
)
def test_another_run_is_refused_before_it_trains(env, callback, message, tmp_path):
    callbacks = [CrashAt(50), RigL(every=5, drop_fraction=0.3), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        sb3_sparse.resume(tmp_path, env, callback)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    # Nobody holds the folder
    assert sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None), RigL(every=5, drop_fraction=0.3)]).num_timesteps == 100


def test_another_number_of_environments(tmp_path):
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, make_vec_env("Pendulum-v1", 2)).learn(100, callback=callbacks)
    let_go(callbacks)
    with pytest.raises(ValueError, match="the run has 2 environments, 1 were given"):
        sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)])


def test_nothing_to_resume(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no checkpoint in .*: give the folder of a run that was trained with"
    ):
        sb3_sparse.resume(tmp_path, "Pendulum-v1")


def test_what_is_not_as_it_was_is_said(tmp_path, monkeypatch):
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch" if native.available() else "auto")
    with pytest.warns(
        UserWarning, match=r"trained with engine \w+, here it is \w+: it goes on, but perhaps not to the last bit"
    ):
        sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)])


@pytest.mark.skipif(not native.available(), reason="decides between the native engine and torch")
def test_a_run_keeps_its_decisions_about_the_engine(tmp_path, auto_engine):
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path / "run")]
    model = small(TD3, "Pendulum-v1", batch_size=32)
    with pytest.raises(Crash):
        model.learn(100, callback=callbacks)
    let_go(callbacks)
    decided = dict(crossovers().ratios)
    assert decided
    # Meanwhile somebody measures again, and finds the opposite
    crossovers().ratios.update({key: 1 / value for key, value in decided.items()})
    sb3_sparse.resume(tmp_path / "run", "Pendulum-v1", [CrashAt(None)])
    assert {key: crossovers().ratios[key] for key in decided} == decided


def test_threads_are_as_they_were(tmp_path):
    before = th.get_num_threads()
    try:
        th.set_num_threads(2)
        callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
        with pytest.raises(Crash):
            small(TD3, "Pendulum-v1").learn(60, callback=callbacks)
        let_go(callbacks)
        th.set_num_threads(1)
        sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)])
        assert th.get_num_threads() == 2
    finally:
        th.set_num_threads(before)


# --- Pickle ---


def _falling(progress):
    return 1e-3 * progress


def test_what_is_no_data_is_pickled_and_that_is_said(tmp_path):
    steep = 2e-3
    make = lambda: small(TD3, "Pendulum-v1", learning_rate=lambda progress: steep * progress)  # noqa: E731
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
    with (
        pytest.warns(UserWarning, match=r"model\.learning_rate, model\.lr_schedule is no data and is pickled"),
        pytest.raises(Crash),
    ):
        make().learn(100, callback=callbacks)
    let_go(callbacks)
    with pytest.raises(
        ValueError, match="learning_rate, lr_schedule of the model is pickled in the checkpoint, which was not"
    ):
        sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)], allow_pickle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert equal_state(make().learn(100), sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)]))


def test_without_pickle(tmp_path):
    model = small(TD3, "Pendulum-v1", learning_rate=lambda progress: 1e-3)
    with pytest.raises(ValueError, match=r"model\.learning_rate is .*lambda.* which a checkpoint can only hold pickled"):
        model.learn(100, callback=RunCheckpoint(20, folder=tmp_path, allow_pickle=False))
    assert model.num_timesteps == 0
    # A function of a module is a name
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path, allow_pickle=False)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1", learning_rate=_falling).learn(100, callback=callbacks)
    let_go(callbacks)
    with pytest.raises(ValueError, match="of no package that a file may name without being trusted"):
        sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)], allow_pickle=False)
    assert sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)]).num_timesteps == 100


def test_a_run_of_plain_data_needs_no_trust(tmp_path):
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path, allow_pickle=False), RigL(every=5, drop_fraction=0.3)]
    with pytest.raises(Crash):
        small(SAC, VecNormalize(make_vec_env("Pendulum-v1"))).learn(100, callback=callbacks)
    let_go(callbacks)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or file.suffix in (".json", ".npz", "") or file.name.endswith("monitor.csv")
        assert not file.is_file() or b"cloudpickle" not in file.read_bytes()
    own = [CrashAt(None), RigL(every=5, drop_fraction=0.3)]
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    assert sb3_sparse.resume(tmp_path, env, [own[0], RunCheckpoint(20, folder=tmp_path), own[1]], allow_pickle=False)


def test_the_logs_counters_go_on(tmp_path):
    """On-policy algorithms count their rollouts from 1 in every learn(), and log at every other one."""

    class Lines(BaseCallback):
        def _on_rollout_start(self):
            names = ("time/iterations", "time/total_timesteps", "time/fps")
            lines.append([self.logger.name_to_value.get(name) for name in names])

        def _on_step(self):
            return True

    subject = Subject("ppo", env="CartPole-v1", method="rigl", steps=400)
    lines = []
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_with_crashes(subject, whole, [])
    run_with_crashes(subject, broken, [150, 290])
    tables = [(folder / "progress.csv").read_text().splitlines() for folder in (whole, broken)]
    columns = [table[0].split(",").index("time/iterations") for table in tables]
    iterations = [[line.split(",")[column] for line in table[1:]] for table, column in zip(tables, columns, strict=True)]
    assert iterations[0] == iterations[1]
    assert [float(one) for one in iterations[0] if one] == [2, 4, 6, 8, 10, 12]


def test_monitor_of_a_run_is_found(tmp_path):
    env = make_vec_env("Pendulum-v1", monitor_dir=str(tmp_path / "logs"))
    small(TD3, env).learn(50, callback=RunCheckpoint(20))
    assert find_store(tmp_path / "logs").steps() == [20, 40]
    assert Path(find_store(tmp_path / "logs").folder) == tmp_path / "logs" / "checkpoints"


def test_every_n_timesteps_is_no_place_for_it(tmp_path):
    with pytest.raises(ValueError, match="RunCheckpoint is not told when a rollout begins: give it to learn"):
        small(TD3, "Pendulum-v1").learn(50, callback=EveryNTimesteps(10, RunCheckpoint(20, folder=tmp_path)))


def test_a_second_learn_goes_on_in_the_same_folder(tmp_path):
    callback, model = RunCheckpoint(20, folder=tmp_path), small(TD3, "Pendulum-v1")
    model.learn(50, callback=callback)
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert find_store(tmp_path).steps() == [60, 80]
    with pytest.raises(ValueError, match="holds checkpoints of another training, the last of step 80"):
        small(TD3, "Pendulum-v1").learn(50, callback=RunCheckpoint(20, folder=tmp_path))


def test_ppo_with_clip_ranges_that_are_schedules(tmp_path):
    make = lambda: PPO("SparseMlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, clip_range=_falling, seed=1, device="cpu")  # noqa: E731
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        make().learn(90, callback=callbacks)
    let_go(callbacks)
    assert equal_state(make().learn(90), sb3_sparse.resume(tmp_path, "CartPole-v1", [CrashAt(None)]))


def test_everything_sees_a_difference(tmp_path):
    """The hash that the others compare."""
    results = []
    for seed in (3, 4):
        subject = Subject("td3", method="rigl", steps=80, seed=seed)
        model, callbacks = subject.train(tmp_path / str(seed))
        results.append(everything(model, callbacks, tmp_path / str(seed)))
    differing = {name for name in results[0] if results[0][name] != results[1].get(name)}
    assert {"draws", "_last_obs", "buffer/observations", "policy/actor.mu.0.weight", "next/0"} <= differing
