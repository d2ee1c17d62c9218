"""Files to look at: hindsight replay without an environment, classes of scripts, damage, and what the command line says."""

import copy
import json
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sb3_contrib import TQC
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_sparse import quantize, shrink, sparsify, sparsity_report, to_stock
from sb3_sparse.cli.main import main
from sb3_sparse.conversion.loading import find_algorithm, load_model
from tests.helpers import assert_invariants, equal_state, make_model, observations, same_actions

# --- HerReplayBuffer ---

HER = [TD3, DDPG, SAC, TQC, DQN]


def her_model(algorithm, sparse=True):
    env = BitFlippingEnv(n_bits=4, continuous=algorithm is not DQN)
    policy = "SparseMultiInputPolicy" if sparse else "MultiInputPolicy"
    kwargs = dict(learning_starts=30, buffer_size=300, batch_size=8, device="cpu", seed=0)
    policy_kwargs = dict(net_arch=[16, 12]) | (dict(sparsity=0.5) if sparse else {})
    buffer_kwargs = dict(n_sampled_goal=2, goal_selection_strategy="final")
    return algorithm(
        policy,
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=buffer_kwargs,
        policy_kwargs=policy_kwargs,
        **kwargs,
    )


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("algorithm", HER)
def test_hindsight_replay(algorithm, sparse, tmp_path, capsys):
    model = her_model(algorithm, sparse).learn(60)
    model.save(tmp_path / "model.zip")
    if sparse:
        main(["report", str(tmp_path / "model.zip")])
        assert "critic" in capsys.readouterr().out or algorithm is DQN
        assert sparsity_report(model).inference.is_known
    main(["prune", str(tmp_path / "model.zip"), "--sparsity", "0.7"])
    pruned = algorithm.load(tmp_path / "model-pruned.zip", env=model.get_env())
    assert_invariants(pruned)
    assert isinstance(pruned.replay_buffer, HerReplayBuffer)
    assert pruned.replay_buffer.n_sampled_goal == 2
    pruned.learn(60)
    # A live one shares its buffer, and a copy of it computes rewards, too
    for how in ("share", "copy", "new"):
        live = sparsify(model, 0.7, replay_buffer=how)
        assert (live.replay_buffer is model.replay_buffer) == (how == "share")
        assert live.replay_buffer.env is not None
        live.learn(60, reset_num_timesteps=how == "new")
        assert_invariants(live)


def test_hindsight_replay_from_a_file_without_environment(tmp_path):
    model = her_model(TD3).learn(60)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    pruned = sparsify(tmp_path / "model.zip", 0.7, device="cpu")
    pruned.predict(observations(pruned))
    with pytest.raises(RuntimeError, match=r"has no replay buffer: .* needs an environment"):
        pruned.replay_buffer.size()
    pruned.save(tmp_path / "pruned.zip")
    assert equal_state(pruned, TD3.load(tmp_path / "pruned.zip", env=model.get_env()))
    for convert in (to_stock, shrink, lambda one: quantize(one, data=observations(model)), copy.deepcopy):
        same = convert(pruned)
        assert same.replay_buffer_class is HerReplayBuffer
    pruned.set_env(model.get_env())
    with pytest.raises(RuntimeError, match="has no replay buffer"):
        pruned.learn(40)
    pruned.load_replay_buffer(tmp_path / "buffer.pkl")
    pruned.learn(40, reset_num_timesteps=False)
    assert_invariants(pruned)
    with_env = sparsify(tmp_path / "model.zip", 0.7, env=BitFlippingEnv(n_bits=4, continuous=True), device="cpu")
    with_env.learn(60)
    assert_invariants(with_env)


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_reading_a_file_moves_no_random_stream_and_makes_no_buffer(algorithm, tmp_path):
    make_model(algorithm, policy_kwargs=dict(sparsity=0.5)).save(tmp_path / "model.zip")
    before = (random.getstate(), np.random.get_state()[1].copy(), th.get_rng_state())
    model = load_model(tmp_path / "model.zip")
    sparsity_report(model)
    after = (random.getstate(), np.random.get_state()[1].copy(), th.get_rng_state())
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert th.equal(before[2], after[2])
    if algorithm is not PPO:
        assert not hasattr(model.replay_buffer, "__len__")
        with pytest.raises(RuntimeError, match="read from a file to be looked at"):
            model.replay_buffer.size()


# --- Classes that a script defines ---

SCRIPT = """
import sys
from stable_baselines3 import TD3
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import TD3Policy
from sb3_sparse import SparsePolicyMixin

class MyExtractor(FlattenExtractor):
    pass

class MyPolicy(TD3Policy):
    pass

class SparseMyPolicy(SparsePolicyMixin, MyPolicy):
    pass

class SparseOther(SparsePolicyMixin, TD3Policy):
    pass

def make(policy, **kwargs):
    kwargs["features_extractor_class"] = MyExtractor
    return TD3(policy, "Pendulum-v1", policy_kwargs=dict(net_arch=[8], **kwargs), device="cpu", buffer_size=100)

if __name__ == "__main__":
    make(MyPolicy).save(sys.argv[1] + "/dense.zip")
    make(SparseMyPolicy, sparsity=0.5).save(sys.argv[1] + "/sparse.zip")
"""


def test_a_policy_class_of_a_script(tmp_path, monkeypatch):
    (tmp_path / "own_training.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "own_training.py"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_training

    dense = TD3.load(tmp_path / "dense.zip")
    assert type(dense.policy).__module__ == "__main__"
    for agent in (tmp_path / "dense.zip", dense):
        model = sparsify(agent, 0.5, policy_class=own_training.SparseMyPolicy)
        assert type(model.policy) is own_training.SparseMyPolicy
        assert same_actions(sparsify(agent, 0.0, policy_class=own_training.SparseMyPolicy), dense, bits=False)
        assert_invariants(model)
    again = sparsify(tmp_path / "sparse.zip", 0.7)
    assert type(again.policy).__name__ == "SparseMyPolicy"
    assert type(sparsify(again, 0.8, policy_class=own_training.SparseMyPolicy).policy) is own_training.SparseMyPolicy
    assert type(to_stock(again).policy).__name__ == "MyPolicy"
    main(["report", str(tmp_path / "sparse.zip"), "--allow-pickle"])
    main(["prune", str(tmp_path / "sparse.zip"), "--sparsity", "0.8", "--allow-pickle"])
    # Another class of that script, or the same name with other ancestors, is still another one
    with pytest.raises(TypeError, match="`policy_class` must be a class that extends SparsePolicyMixin and MyPolicy"):
        sparsify(tmp_path / "dense.zip", 0.5, policy_class=own_training.SparseOther)
    with pytest.raises(TypeError, match=r"class SparseMyPolicy\(sb3_sparse.SparsePolicyMixin, MyPolicy\)"):
        sparsify(tmp_path / "dense.zip", 0.5)


# --- Damage ---


def damaged(path, kind):
    """A damaged copy of a model's zip."""
    whole = path.read_bytes()
    bad = path.with_name("bad.zip")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        start = archive.getinfo("policy.pth").header_offset
    if kind == "truncated":
        bad.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        bad.write_bytes(b"")
    elif kind == "a bit":
        flipped = bytearray(whole)
        flipped[start + 400] ^= 4
        bad.write_bytes(bytes(flipped))
    else:
        if kind == "no policy":
            del members["policy.pth"]
        elif kind == "half a policy":
            members["policy.pth"] = members["policy.pth"][: len(members["policy.pth"]) // 2]
        elif kind == "half the data":
            members["data"] = members["data"][: len(members["data"]) // 2]
        elif kind == "no data":
            del members["data"]
        elif kind == "no class":
            data = json.loads(members["data"])
            del data["policy_class"]
            members["data"] = json.dumps(data).encode()
        with zipfile.ZipFile(bad, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    return bad


KINDS = {
    "truncated": "was cut off",
    "empty": "not a zip file, or one that was cut off",
    "a bit": r"is damaged: its entry 'policy.pth' cannot be read \(BadZipFile",
    "no policy": r"lacks an entry 'policy.pth'",
    "half a policy": r"is damaged: its entry 'policy.pth' cannot be read",
    "half the data": r"is damaged: its entry 'data' cannot be read \(JSONDecodeError",
    "no data": "lacks an entry 'data'",
    "no class": "lacks a policy class",
}


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_zips_are_refused_by_name_of_the_entry(kind, sparse, tmp_path, capsys):
    make_model(SAC, sparse=sparse).save(tmp_path / "model.zip")
    bad = damaged(tmp_path / "model.zip", kind)
    for refused in (find_algorithm, load_model, lambda path: sparsify(path, 0.9)):
        with pytest.raises(ValueError, match=KINDS[kind]):
            refused(bad)
    for arguments in (["report", str(bad)], ["prune", str(bad), "--sparsity", "0.9", "-o", str(tmp_path / "new.zip")]):
        with pytest.raises(SystemExit, match=KINDS[kind]) as refusal:
            main(arguments)
        assert refusal.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new.zip").exists()
    with pytest.raises(ValueError, match=KINDS[kind]):
        find_algorithm(bad, "sac")  # that the algorithm is named changes nothing


def rewritten(path, change):
    data, params, variables = load_from_zip_file(path, device="cpu")
    change(params)
    bad = path.with_name("bad.zip")
    save_to_zip_file(bad, data=data, params=params, pytorch_variables=variables)
    return bad


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: params["policy"]["actor.mu.0.weight"][0].fill_(th.nan), "not finite"),
        (lambda params: params["policy"].update({"actor.mu.0.weight": th.zeros(3, 3)}), r"\(3, 3\)|\[3, 3\]"),
        (lambda params: params.pop("actor.optimizer"), "actor.optimizer"),
    ],
)
def test_zips_whose_contents_cannot_be(change, message, sparse, tmp_path):
    make_model(TD3, sparse=sparse).save(tmp_path / "model.zip")
    bad = rewritten(tmp_path / "model.zip", change)
    with pytest.raises(ValueError, match=message):
        sparsify(bad, 0.9)
    with pytest.raises(SystemExit, match=message) as refusal:
        main(["prune", str(bad), "--sparsity", "0.9"])
    assert refusal.value.code == 2
    assert not (tmp_path / "bad-pruned.zip").exists()


# --- The command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{folder}/none.zip"], "there is no model at"),
        (["report", "{folder}/empty"], r"there is no model \(\*.zip\) in the folder"),
        (["report", "{folder}/text.zip"], "is not a zip file"),
        (["report", "{model}", "--algo", "tdd3"], "`algo`='tdd3' is unknown; known are: td3"),
        (["report", "{dense}"], "which is not sparse"),
        (["prune", "{model}"], "`sparsity` is left out"),
        (["prune", "{model}", "--sparsity", "1.5"], r"`sparsity` must be a number in \[0, 1\), got 1.5"),
        (["prune", "{model}", "--sparsity", "nan"], r"`sparsity` must be a number in \[0, 1\), got nan"),
        (["prune", "{model}", "--sparsity", "0.9", "0.8"], "`--sparsity` must be one number, or NETWORK=NUMBER"),
        (["prune", "{model}", "--sparsity", "actor=0.9", "actor=0.8"], "`--sparsity` must be one number, or NETWORK=NUMBER"),
        (["prune", "{model}", "--sparsity", "q_net=0.9"], "`sparsity` names the unknown network 'q_net'"),
        (["prune", "{model}", "--sparsity", "0.9", "--pattern", "3:2"], "`pattern`"),
        (["prune", "{model}", "--sparsity", "0.9", "--dense-layers", "actor.mu.7"], "`dense_layers` names the unknown layer"),
        (["prune", "{model}", "--sparsity", "0.9", "--scope", "global", "--distribution", "er"], "`scope`='global' and"),
        (["prune", "{model}", "--sparsity", "0.9", "-o", "{folder}/nowhere/x.zip"], "`--output` .* there is no folder"),
        (["prune", "{model}", "--sparsity", "0.9", "-o", "{model}"], "`--output` .* is the model itself"),
        (["prune", "{model}", "--sparsity", "0.9", "--finetune", "-1"], "`--finetune` must be an integer >= 0, got -1"),
        (["prune", "{model}", "--sparsity", "0.9", "--finetune", "100"], "`--finetune` needs an environment"),
        (["prune", "{model}", "--sparsity", "0.9", "--finetune", "100", "--env", "Nope-v1"], "`--env` 'Nope-v1' is not"),
        (
            ["prune", "{model}", "--sparsity", "0.9", "--seed", "-3"],
            r"`--seed` must be an integer in \[0, 4294967295\], got -3",
        ),
        (["prune", "{model}", "--sparsity", "0.9", "--algo", "nope"], "`algo`='nope' is unknown"),
    ],
)
def test_mistakes_are_answered_in_one_line_before_anything_is_done(arguments, message, tmp_path, capsys):
    make_model(TD3).save(tmp_path / "model.zip")
    make_model(TD3, sparse=False).save(tmp_path / "dense.zip")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    files = sorted(tmp_path.rglob("*"))
    places = dict(folder=tmp_path, model=tmp_path / "model.zip", dense=tmp_path / "dense.zip")
    with pytest.raises(SystemExit, match=message) as refusal:
        main([argument.format(**places) for argument in arguments])
    assert refusal.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model's zip, and the model."""
    path = tmp_path_factory.mktemp("damage") / "model.zip"
    model = make_model(TD3, policy_kwargs=dict(net_arch=[4]))
    model.save(path)
    return path.read_bytes(), model


def read_or_refused(content, model, folder):
    """Every byte of what was loaded is that of the model, or the file is refused, by name, as damaged."""
    bad = folder / "bad.zip"
    bad.write_bytes(content)
    before = th.get_rng_state()
    try:
        loaded = load_model(bad, "td3")
    except ValueError as error:
        assert str(bad) in str(error)
        return False
    finally:
        assert th.equal(before, th.get_rng_state())
    assert equal_state(loaded, model)
    return True


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(where=0.0, bit=0)
@example(where=0.9927697218868422, bit=7)
def test_a_bit_that_is_flipped_anywhere(where, bit, whole, tmp_path):
    content, model = whole
    flipped = bytearray(content)
    flipped[int(where * len(flipped))] ^= 1 << bit
    read_or_refused(bytes(flipped), model, tmp_path)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_off_anywhere(where, whole, tmp_path):
    content, model = whole
    assert not read_or_refused(content[: int(where * len(content))], model, tmp_path)
