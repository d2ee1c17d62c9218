"""Which engine runs."""

import json
import subprocess
import sys
import warnings

import pytest
import torch as th
from stable_baselines3 import DQN, SAC, TD3

from sb3_sparse import sparse_policy
from sb3_sparse.engine import crossover, native
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.engine.choice import requested_engine
from sb3_sparse.engine.crossover import Crossovers
from sb3_sparse.engine.sequence import SparseSequential
from tests.engine.networks import MLP, make_input, make_sequence, needs_kernels
from tests.engine.test_sequence import runs
from tests.helpers import equal_state, make_model, shuffle_masks


def test_unknown_engine(monkeypatch):
    with pytest.raises(ValueError, match="`engine` must be one of 'auto', 'native', 'torch', got 'cuda'"):
        make_model(TD3, policy_kwargs=dict(engine="cuda"))
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "fast")
    with pytest.raises(ValueError, match="SB3_SPARSE_ENGINE"):
        make_model(TD3)


def test_environment_wins(monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch")
    assert requested_engine("auto") == requested_engine("native") == "torch"
    monkeypatch.delenv("SB3_SPARSE_ENGINE")
    assert requested_engine("auto") == "auto"


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "_REASON", "No module named '_native'", raising=False)
    monkeypatch.setattr(native, "_noticed", set())
    monkeypatch.delenv("SB3_SPARSE_ENGINE")
    with pytest.raises(ImportError, match=r"`engine`='native': the native engine is not there \(No module named '_native'\)"):
        make_model(TD3, policy_kwargs=dict(engine="native"))
    with pytest.warns(UserWarning, match="sb3_sparse uses torch's dense kernels: the native engine is not there"):
        model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.learn(40)
    assert not any(isinstance(module, SparseSequential) for module in model.policy.modules())


@needs_kernels
def test_auto_measures_once_and_remembers(auto_engine, monkeypatch):
    measured = []

    def measure(sequence, n_samples):
        measured.append(n_samples)
        return 0.5 if n_samples > 100 else 2.0

    monkeypatch.setattr(crossover, "_measure", measure)
    counts = runs(monkeypatch)
    sequence = make_sequence(MLP, engine="auto")
    for n_samples in (33, 33, 40, 200):
        sequence(th.zeros(n_samples, 9))
    assert measured == [33, 200]
    assert counts["forward"] == 3
    (file,) = auto_engine.glob("*.json")
    assert sorted(json.loads(file.read_text()).values()) == [0.5, 2.0]
    # Another process finds it
    monkeypatch.setattr(crossover, "_known", {})
    make_sequence(MLP, engine="auto")(th.zeros(33, 9))
    assert measured == [33, 200]


@needs_kernels
def test_what_others_have_shown_is_not_measured(auto_engine, monkeypatch):
    """Masks that become sparser and sparser, as pruning makes them, are measured until the kernels are clearly faster."""
    measured = []

    def measure(sequence, n_samples):
        density = sequence.layers[1].n_active / sequence.layers[1].weight.numel()
        measured.append(round(density, 2))
        return 3.0 if density < 0.45 else 0.9 if density < 0.7 else 0.5

    monkeypatch.setattr(crossover, "_measure", measure)
    sequence = make_sequence(MLP, engine="auto")
    decided = {}
    for hundredths in (95, 90, 85, 60, 50, 40, 30, 20, 10, 5):
        generator = th.Generator().manual_seed(hundredths)
        for layer in sequence.layers:
            order = th.rand(layer.weight.shape, generator=generator)
            layer.replace_mask(order <= order.flatten().kthvalue(max(1, order.numel() * hundredths // 100))[0])
        decided[hundredths] = crossover.crossovers().ratio(sequence, 100)
    assert measured == [0.95, 0.9, 0.85, 0.6, 0.5, 0.4]
    assert [hundredths for hundredths, ratio in decided.items() if ratio >= 1.05] == [40, 30, 20, 10, 5]
    # More weights than where it was clearly slower
    for layer in sequence.layers:
        layer.replace_mask(th.ones_like(layer.weight_mask))
    assert crossover.crossovers().ratio(sequence, 100) == 0.5
    assert crossover.crossovers().ratio(sequence, 33) == 0.5
    assert len(measured) == 7, "another size of batch is another matter"
    (file,) = auto_engine.glob("*.json")
    assert len(json.loads(file.read_text())) == 12


@needs_kernels
def test_a_real_measurement_leaves_nothing_behind(auto_engine):
    sequence = make_sequence(MLP, engine="auto")
    before, state = [parameter.clone() for parameter in sequence.parameters()], th.get_rng_state()
    assert Crossovers(auto_engine / "file").ratio(sequence, 64) > 0
    assert Crossovers(auto_engine / "file").ratio(sequence, 1) > 0
    assert th.equal(state, th.get_rng_state())
    assert all(parameter.grad is None for parameter in sequence.parameters())
    assert all(th.equal(own, other) for own, other in zip(before, sequence.parameters(), strict=True))


@needs_kernels
def test_a_measurement_between_backward_and_step_changes_nothing(auto_engine):
    sequences = [make_sequence(MLP) for _ in range(2)]
    for index, sequence in enumerate(sequences):
        optimizer = th.optim.Adam(sequence.parameters(), lr=0.1)
        SurvivorAdam.adopt(optimizer, [sequence])
        for _ in range(2):
            sequence(make_input(MLP)).sum().backward()
            if index:
                Crossovers(auto_engine / "file").ratio(sequence, 64)
            optimizer.step()
    assert all(th.equal(own, other) for own, other in zip(*(sequence.parameters() for sequence in sequences), strict=True))


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": "b"}', "\x00\x01"])
def test_corrupted_measurements_are_made_anew(content, tmp_path):
    path = tmp_path / "crossover.json"
    path.write_text(content)
    crossovers = Crossovers(path)
    assert crossovers.ratios == {}
    crossovers.ratios["a"] = 1.5
    crossovers._save()
    assert Crossovers(path).ratios == {"a": 1.5}


def test_measurements_that_cannot_be_kept(tmp_path):
    path = tmp_path / "a file" / "crossover.json"
    path.parent.write_text("in the way")
    crossovers = Crossovers(path)
    crossovers.ratios["a"] = 1.5
    crossovers._save()
    assert path.parent.read_text() == "in the way"


def test_processes_that_measure_at_once_keep_what_both_found(tmp_path):
    path = tmp_path / "crossover.json"
    script = (
        "import sys, pathlib\nfrom sb3_sparse.engine.crossover import Crossovers\n"
        "own = Crossovers(pathlib.Path(sys.argv[1]))\nsys.stdin.readline()\n"
        "for index in range(20):\n    own.ratios[f'{sys.argv[2]} {index}'] = 2.0\n    own._save()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], stdin=subprocess.PIPE, text=True) for name in "ab"
    ]
    for process in processes:
        process.communicate("go\n", timeout=300)
        assert process.returncode == 0
    assert Crossovers(path).ratios == {f"{name} {index}": 2.0 for name in "ab" for index in range(20)}


def test_whoever_measured_first_decides(tmp_path):
    first, second = Crossovers(tmp_path / "file.json"), Crossovers(tmp_path / "file.json")
    first.ratios["a"] = 2.0
    first._save()
    second.ratios.update(a=0.5, b=1.5)
    second._save()
    assert second.ratios == Crossovers(tmp_path / "file.json").ratios == {"a": 2.0, "b": 1.5}


@pytest.mark.parametrize("how", ["missing", "read only", "a file", "unknown"])
def test_a_home_that_cannot_be_written_to_is_no_error(how, tmp_path, monkeypatch):
    monkeypatch.setattr(crossover, "_known", {})
    for name in ("SB3_SPARSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    if how == "read only":
        home.mkdir(mode=0o500)
    elif how == "a file":
        home.write_text("")
    monkeypatch.setenv("HOME", "/proc/home" if how == "missing" else str(home))
    if how == "unknown":

        def nobody():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(crossover.Path, "home", staticmethod(nobody))
    crossover.crossovers().ratios["a"] = 1.5
    crossover.crossovers()._save()
    assert crossover.crossovers().ratios == {"a": 1.5}


@needs_kernels
def test_auto_leaves_dense_sequences_to_torch(auto_engine, monkeypatch):
    counts = runs(monkeypatch)
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.0))
    model.learn(40)
    assert counts == {"forward": 0, "backward": 0}
    assert not auto_engine.exists()


@needs_kernels
@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
def test_same_seed_same_bits_and_engines_agree(algorithm, monkeypatch):
    models = {}
    for run, engine in [("first", "native"), ("second", "native"), ("torch", "torch")]:
        monkeypatch.setenv("SB3_SPARSE_ENGINE", engine)
        models[run] = make_model(algorithm, policy_kwargs=dict(sparsity=0.7), seed=4)
        shuffle_masks(models[run])
        models[run].learn(40)
    assert equal_state(models["first"], models["second"])
    native_ones, torch_ones = (models[run].policy.state_dict() for run in ("first", "torch"))
    for name, value in native_ones.items():
        # A few steps apart float rounding is all there is
        th.testing.assert_close(value, torch_ones[name], rtol=1e-3, atol=1e-4, msg=name)


@needs_kernels
def test_saved_under_one_engine_loads_under_another(monkeypatch, tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, engine="native"))
    model.learn(40)
    model.save(tmp_path / "model.zip")
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch")
    loaded = TD3.load(tmp_path / "model.zip", env=model.get_env())
    assert equal_state(model, loaded)
    loaded.learn(40)
    assert sparse_policy(loaded).sparsifier.violations() == []


@needs_kernels
def test_native_actors_and_critics_are_used(monkeypatch):
    counts = runs(monkeypatch)
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.learn(24)
    counts.update(forward=0, backward=0)
    model.train(gradient_steps=2, batch_size=8)
    # Twice: target actor, two targets, two critics; once: actor and one critic
    assert counts == {"forward": 12, "backward": 6}
