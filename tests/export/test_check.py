"""Checks: they pass what is right, fail what is wrong, and then nothing is written."""

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_sparse import export, quantize
from sb3_sparse.export import CheckFailedError, cortex_m, exporter
from sb3_sparse.export.artefact import c_compiler
from sb3_sparse.export.check import Check, Comparison, check, without_normalization
from sb3_sparse.export.exporter import make_artefact
from sb3_sparse.export.parity import Difference, difference
from sb3_sparse_runtime.spaces import Space
from tests.export.subjects import SpacesEnv, known, needs_compiler
from tests.export.test_decision import normalizing
from tests.helpers import RandomEnv, make_model

FORMATS = ["packed", pytest.param("c", marks=needs_compiler), "onnx"]


def found(model, to, normalize=None, env=None, **kwargs):
    return check(
        make_artefact(model, to, normalize=normalize), model, normalize, env, n_observations=40, n_episodes=3, **kwargs
    )


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("algorithm", "kind", "bits"),
    [(SAC, "Mlp", 0), (TD3, "Mlp", 8), (DQN, "Cnn", 8), (PPO, "MultiInput", 0), (MaskablePPO, "Mlp", 4)],
)
def test_what_is_right_passes(algorithm, kind, bits, to):
    pytest.importorskip("onnxruntime")
    model = known(algorithm, kind, bits)
    result = found(model, to, env=DummyVecEnv([lambda: RandomEnv(kind, discrete=model.action_space.shape == ())]))
    assert result.passed, str(result)
    assert len(result.before) == len(result.after) == 3
    names = [comparison.what for comparison in result.comparisons]
    assert names[0] == "recorded observations: the model"
    exact = [comparison for comparison in result.comparisons if comparison.bound == 0]
    assert len(exact) == (2 if bits and to != "onnx" else 0)
    assert all(comparison.found.bits == 1 for comparison in exact)
    # Episodes of ten steps from one seed, as the environment's actions are of no consequence
    assert result.comparisons[0].found.n == 30
    assert "ok" in str(result)
    assert "FAILED" not in str(result)


@pytest.mark.parametrize("to", FORMATS)
def test_statistics_are_part_of_what_is_checked(to):
    pytest.importorskip("onnxruntime")
    env = normalizing(RandomEnv())
    model = quantize(make_model(TD3, env=env), bits=8)
    assert found(model, to, env, env.venv).passed
    # Without them the model sees something else
    assert not check(make_artefact(model, to), model, env, env.venv, n_observations=40, n_episodes=2).passed


@needs_compiler
@pytest.mark.skipif(cortex_m.missing_tools() is not None, reason=str(cortex_m.missing_tools()))
def test_cortex_m_is_checked_under_qemu():
    result = found(known(SAC, "Mlp", 8), "cortex-m", env=DummyVecEnv([RandomEnv]))
    assert result.passed
    assert any("Cortex-M" in comparison.what and comparison.found.bits == 1 for comparison in result.comparisons)
    assert any("instructions on average on a Cortex-M4F" in note for note in result.notes)


def test_without_an_environment_it_says_what_was_not_done():
    result = found(known(SAC), "packed")
    assert (result.passed, result.before, len(result.comparisons)) == (True, (), 2)
    assert "no environment is known" in str(result)


@pytest.mark.parametrize("to", ["packed", pytest.param("c", marks=needs_compiler)])
def test_a_check_that_fails_writes_nothing(to, tmp_path, monkeypatch):
    model = known(TD3, "Mlp", 8)
    wrong = make_artefact(known(SAC, "Mlp", 8), to)
    monkeypatch.setattr(exporter, "make_artefact", lambda *args, **kwargs: wrong)
    with pytest.raises(CheckFailedError, match=r"(?s)nothing is written:.*FAILED") as caught:
        export(model, tmp_path / "policy", to=to, check=True)
    assert not caught.value.check.passed
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_python_plays_in_the_models_environment(tmp_path):
    model = make_model(TD3, env=normalizing(RandomEnv()))
    exported = export(model, tmp_path / "policy.sb3s", check=True)
    assert exported.check.passed
    assert len(exported.check.before) == 10
    assert model.learn(25)


def comparison(largest=0.0, typical=0.0, agreement=1.0, bits=1.0, bound=1e-4, disagreement=1.0):
    return Comparison("what", Difference(10, largest, typical, agreement, bits), bound, 1e-5, disagreement)


def test_bounds_by_hand():
    assert comparison(largest=1e-4, agreement=0).passed
    assert not comparison(largest=1.1e-4).passed
    assert not comparison(largest=9e-5, typical=2e-5).passed
    assert comparison(agreement=0.99, disagreement=0.01).passed
    assert not comparison(agreement=0.98, disagreement=0.01).passed
    assert comparison(bound=0).passed
    assert not comparison(bound=0, bits=0.999).passed
    assert Check((), (100.0, 102.0), (96.0, 97.0), ()).passed  # 5 %
    assert not Check((), (100.0, 102.0), (90.0, 91.0), ()).passed
    assert Check((), (0.0, 100.0), (0.0, 60.0), ()).passed  # within the noise of so few episodes
    assert Check((), (-100.0, -100.0), (-104.0, -104.0), ()).passed
    assert not Check((comparison(largest=1),), (), (), ()).passed


def test_differences_by_hand():
    box = Space("box", (2,), "float32")
    result = difference(box, np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 2], [3, 4.5]]))
    assert result == Difference(2, 0.5, 0.25, 0.5, 0.75)
    choice = Space("discrete", (), "int64", (3,))
    assert difference(choice, np.array([[1], [2]]), np.array([[1], [0]])) == Difference(2, 0.0, 0.0, 0.5, 0.5)


def test_normalisation_is_taken_off_an_environment():
    env = DummyVecEnv([RandomEnv])
    assert without_normalization(None) is None
    assert without_normalization(env) is env
    assert without_normalization(VecNormalize(env)) is env
    # What lies around it cannot be kept
    assert without_normalization(VecFrameStack(VecNormalize(env), 2)) is None
    image = SpacesEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(2))
    assert isinstance(without_normalization(VecTransposeImage(DummyVecEnv([lambda: image]))), VecTransposeImage)


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ImportError, match="needs a C compiler: install gcc or clang, or name one in the variable CC"):
        c_compiler()
    with pytest.raises(ImportError, match="checking a Cortex-M export needs tools: make, arm-none-eabi-gcc"):
        found(known(SAC, "Mlp", 8), "cortex-m")
