"""``sb3_sparse.export``: what it refuses before it writes, and that it writes everything or nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC, TD3
from torch import nn

import sb3_sparse
from sb3_sparse import export, load_policy
from sb3_sparse.export import exporter, targets
from tests.export.subjects import known, model_of
from tests.export.test_decision import normalizing
from tests.helpers import RandomEnv, make_model, observations


def listing(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_format_follows_from_the_path_or_is_said(tmp_path):
    model = known(TD3)
    assert export(model, tmp_path / "a.sb3s").to == "packed"
    assert export(model, tmp_path / "b", to="packed").path == tmp_path / "b.sb3s"
    assert export(model, str(tmp_path / "c"), to="c").to == "c"
    for path, to, said in (
        ("d", None, "`to` is left out, and .*d does not say what it is to be: give one of 'packed', 'onnx', 'c', 'cortex-m'"),
        ("d.zip", None, r"a path that ends in .sb3s or .onnx"),
        ("d", "tflite", "`to` must be one of 'packed', 'onnx', 'c', 'cortex-m', got 'tflite'"),
        ("d.sb3s", "c", "`to`='c' writes no .sb3s file"),
    ):
        with pytest.raises(ValueError, match=said):
            export(model, tmp_path / path, to=to)
    assert listing(tmp_path) == ["a.sb3s", "b.sb3s", "c", "c/CMakeLists.txt", "c/main.c", "c/policy.c", "c/policy.h"]


def test_what_exists_is_not_replaced_unless_it_is_said(tmp_path):
    model, other = known(TD3), known(SAC)
    for path, to in ((tmp_path / "a.sb3s", "packed"), (tmp_path / "c", "c")):
        files = export(model, path, to=to).files
        before = [file.read_bytes() for file in files]
        with pytest.raises(ValueError, match=r"exists: choose another name, or allow to replace it with `force`=True"):
            export(other, path, to=to)
        assert [file.read_bytes() for file in files] == before
        assert [file.read_bytes() for file in export(other, path, to=to, force=True).files] != before
    (tmp_path / "folder.sb3s").mkdir()
    with pytest.raises(ValueError, match="is a folder, which is not replaced by packed"):
        export(model, tmp_path / "folder.sb3s", force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file, which is not replaced by c"):
        export(model, tmp_path / "file", to="c", force=True)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files that are none of this export: notes.txt"):
        export(model, tmp_path / "c", to="c", force=True)
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"


def test_bad_arguments_are_named_before_anything_is_written(tmp_path):
    model = known(TD3)
    for kwargs, said in (
        (dict(to="c", name="9lives"), "`name` must be lower-case letters, digits and underscores, .* got '9lives'"),
        (dict(to="c", name="main"), "got 'main'"),
        (dict(to="c", layout="tiny"), "`layout` must be one of 'fast', 'small', 'dense', 'small-dense', got 'tiny'"),
        (dict(to="packed", bits=9), "`bits` must be one of None, 32, 16, 8"),
        (dict(to="packed", bits=8), r"`bits`=8: the model's weights have 32 bits. Quantize it first"),
        (dict(to="c", bits=16), "`bits`=16 is for `to`='packed'"),
        (dict(to="packed", arduino=True), "`arduino` is for `to`='c', got 'packed'"),
        (dict(to="packed", normalize="always"), "`normalize` must be one of 'auto', got 'always'"),
        (dict(to="packed", normalize=3), "`normalize` must be a VecNormalize, 'auto' or None, got 3"),
        (dict(to="packed", distribution=True), "`distribution` cannot be exported: the policy is deterministic"),
    ):
        with pytest.raises(ValueError, match=said):
            export(model, tmp_path / "policy", **kwargs)
    with pytest.raises(ValueError, match=r"`bits`=4: the model's weights have 8 bits"):
        export(known(TD3, "Mlp", 8), tmp_path / "policy.sb3s", bits=4)
    with pytest.raises(ValueError, match=r"`bits`=16: the model is quantized, its weights have 8 bits"):
        export(known(TD3, "Mlp", 8), tmp_path / "policy.sb3s", bits=16)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        export(model, tmp_path / "nowhere" / "policy.sb3s")
    with pytest.raises(ValueError, match=r"layer 'actor.mu.1' is a GELU"):
        export(make_model(TD3, policy_kwargs=dict(activation_fn=nn.GELU)), tmp_path / "policy.sb3s")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("to", ["packed", "c"])
def test_a_failure_leaves_nothing_behind_and_what_was_there_as_it_was(to, tmp_path, monkeypatch):
    model = known(TD3)
    path = export(model, tmp_path / "policy", to=to).path
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def fail(*args):
        raise OSError("no space left on device")

    for module, name in ((targets.os, "rename"), (exporter, "pack"), (exporter, "project"), (targets.os, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, fail)
            try:
                export(known(SAC), path, to=to, force=True)
            except OSError:
                assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
            else:
                export(model, path, to=to, force=True)  # not on the way of this format
    with monkeypatch.context() as patched:
        patched.setattr(targets.Path, "write_text", fail)
        patched.setattr(targets.Path, "write_bytes", fail)
        with pytest.raises(OSError, match="no space left"):
            export(model, tmp_path / "new", to=to)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_statistics_of_the_models_environment_are_taken(tmp_path):
    env = normalizing(RandomEnv())
    model = make_model(TD3, env=env)
    policy = load_policy(export(model, tmp_path / "a.sb3s").path)
    plain = load_policy(export(model, tmp_path / "b.sb3s", normalize=None).path)
    row = observations(model)[0]
    normalized = env.normalize_obs(row)
    assert np.allclose(policy.predict(row)[0], model.predict(normalized, deterministic=True)[0], atol=1e-6)
    assert np.allclose(plain.predict(row)[0], model.predict(row, deterministic=True)[0], atol=1e-6)
    stock = make_model(TD3)
    given = load_policy(export(stock, tmp_path / "c.sb3s", normalize=env).path)
    assert np.allclose(given.predict(row)[0], stock.predict(normalized, deterministic=True)[0], atol=1e-6)


def test_a_file_says_what_it_is_and_where_it_comes_from(tmp_path):
    model = model_of(DQN, bits=8)
    policy = load_policy(export(model, tmp_path / "a.sb3s", bits=8, provenance={"environment": "Random"}).path)
    assert policy.provenance["algorithm"] == "DQN"
    assert policy.provenance["environment"] == "Random"
    assert policy.provenance["sb3_sparse"] == sb3_sparse.__version__
    assert policy.report["networks"]["q_net"]["n_active"] == sb3_sparse.sparsity_report(model).networks["q_net"].n_active
    json.dumps([policy.report, policy.provenance])
    stock = load_policy(export(make_model(PPO, sparse=False), tmp_path / "b.sb3s").path)
    assert stock.report == {}
    half = export(known(TD3), tmp_path / "c.sb3s", bits=16)
    assert half.n_bytes < export(known(TD3), tmp_path / "d.sb3s").n_bytes
