"""Every updater after every other: random trainings, one after the other, with saves, loads and interruptions between them."""

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse import SET, GradualPruning, MaskRefresh, RigL, sparse_policy
from tests.helpers import assert_invariants, make_model, save_and_load, watched

LENGTH = 48
PATTERNS = ["unstructured", "2:4", "1:4", "block:2x2"]


def drop_and_grow(pattern):
    """Keyword arguments of SET and RigL that a pattern allows."""
    return st.fixed_dictionaries(
        {
            "every": st.integers(1, 4),
            "drop_fraction": st.floats(0.05, 0.9),
            "drop_schedule": st.sampled_from(["constant", "cosine", "linear"]),
            "target": st.sampled_from(["online", "own_topk"]),
            "moments": st.sampled_from(["reset", "keep"]),
            "grown": st.sampled_from(["zero", "init"]),
            "skip_step": st.booleans(),
            "unit": st.sampled_from(["steps", "timesteps"]),
            "sign_split": st.just(False) if pattern.startswith("block") else st.sampled_from([False, "half", "proportional"]),
            # DS-TD3's code prunes once more; it does so with a constant fraction
            "last": st.booleans(),
        }
    )


def make(kind, arguments):
    if kind in ("SET", "RigL"):
        arguments = dict(arguments)
        if arguments.pop("last"):
            arguments |= dict(last_event="prune_only", stop=36, drop_schedule="constant")
        return {"SET": SET, "RigL": RigL}[kind](**arguments)
    return {"MaskRefresh": MaskRefresh, "GradualPruning": GradualPruning}[kind](**arguments)


@st.composite
def stages(draw, pattern):
    kinds = ["SET", "RigL", "GradualPruning", *(["MaskRefresh"] if ":" in pattern and "block" not in pattern else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "MaskRefresh":
        arguments = dict(every=draw(st.integers(1, 3)), rule=draw(st.sampled_from(["masked_grad", "ste", "sr_ste"])))
    elif kind == "GradualPruning":
        final = None if ":4" in pattern else draw(st.sampled_from([0.6, 0.8, 0.9]))
        scope = "layer" if final is None else draw(st.sampled_from(["layer", "global"]))
        arguments = dict(
            final_sparsity=final, start=0, stop=draw(st.integers(25, 70)), updates=draw(st.integers(1, 12)), scope=scope
        )
    else:
        arguments = draw(drop_and_grow(pattern))
    return kind, arguments, draw(st.sampled_from(["end", "interrupt", "save"]))


class Stop(BaseCallback):
    def _on_step(self):
        if self.num_timesteps >= 41:
            raise KeyboardInterrupt
        return True


def train(model, stage, folder):
    """One training; the model as it goes on, and whether it was refused."""
    kind, arguments, ending = stage
    sparsifier = sparse_policy(model).sparsifier
    planned, masks = dict(sparsifier.n_planned), sparsifier.masks()
    callback = make(kind, arguments)
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            with watched(model, monkeypatch):
                model.learn(LENGTH, callback=[callback, Stop()] if ending == "interrupt" else callback)
        except KeyboardInterrupt:
            pass
        except ValueError:
            # A network that nothing is pruned of, or that is sparser than gradual pruning wants it: before anything changed
            assert model.num_timesteps == 0
            assert kind == "GradualPruning" or all(layer.mask_values is None for layer in sparsifier.layers.values())
            assert all(th.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())
            return model, True
    assert_invariants(model)
    now = sparsifier.n_planned
    if kind in ("SET", "RigL", "MaskRefresh") and not arguments.get("last"):
        assert now == planned
        assert all(event.n_dropped == event.n_grown for event in callback.events)
    else:
        assert all(now[name] <= planned[name] for name in now)
        assert all(now[name] > 0 for name in now)
    for name, layer in sparsifier.layers.items():
        assert sparsifier.plan[name].pattern.is_legal(layer.weight_mask)
        for target in sparsifier.targets[name]:
            assert target.n_active == int(target.weight_mask.sum()) == layer.n_active
            assert sparsifier.plan[name].pattern.is_legal(target.weight_mask)
    if kind == "MaskRefresh" or (kind in ("SET", "RigL") and arguments["drop_schedule"] == "constant"):
        assert callback.events
    return (save_and_load(model, folder) if ending == "save" else model), False


def check(data, algorithms=(TD3,), widths=([16, 16],)):
    pattern = data.draw(st.sampled_from(PATTERNS), label="pattern")
    algorithm = data.draw(st.sampled_from(algorithms))
    sparsity = {"2:4": None, "1:4": None}.get(pattern, 0.5)
    if data.draw(st.booleans(), label="dense at first"):
        sparsity = 0.0
    net_arch = data.draw(st.sampled_from(widths))
    model = make_model(algorithm, policy_kwargs=dict(pattern=pattern, sparsity=sparsity, net_arch=net_arch))
    trainings = data.draw(st.lists(stages(pattern), min_size=2, max_size=4), label="trainings")
    with TemporaryDirectory() as folder:
        for stage in trainings:
            model, _ = train(model, stage, Path(folder))


@settings(max_examples=12)
@given(st.data())
def test_sequences(data):
    check(data)


@pytest.mark.expensive
@settings(max_examples=600)
@given(st.data())
def test_many_sequences(data):
    check(data, (TD3, SAC, DQN, PPO), ([16, 16], [13, 10]))


#: One of every kind, the last event of DS-TD3's code among them.
KINDS = {
    "SET": ("SET", dict(every=2, drop_fraction=0.4, last=False)),
    "SET-last": ("SET", dict(every=2, drop_fraction=0.4, last=True)),
    "SET-own-last": ("SET", dict(every=2, drop_fraction=0.4, last=True, target="own_topk", sign_split="proportional")),
    "RigL": ("RigL", dict(every=2, drop_fraction=0.4, last=False, moments="keep", skip_step=True)),
    "RigL-own": ("RigL", dict(every=2, drop_fraction=0.4, drop_schedule="constant", last=False, target="own_topk")),
    "MaskRefresh": ("MaskRefresh", dict(every=2)),
    "MaskRefresh-ste": ("MaskRefresh", dict(every=2, rule="sr_ste")),
    "GradualPruning": ("GradualPruning", dict(final_sparsity=None, start=0, stop=90, updates=20)),
}


@pytest.mark.parametrize(("first", "second"), [(a, b) for a, b in product(KINDS, KINDS) if "last" in a or "Gradual" in a])
def test_every_updater_after_those_that_leave_groups_unlike(first, second, tmp_path):
    """N:M after a last event that only pruned, and N:M that is half-way from dense."""
    sparsity = 0.0 if first == "GradualPruning" else None
    model = make_model(TD3, policy_kwargs=dict(pattern="2:4", sparsity=sparsity, net_arch=[16, 16]))
    defaults = {"drop_schedule": "constant"}
    for name, ending in ((first, "save"), (second, "end"), ("SET", "end")):
        kind, arguments = KINDS[name]
        arguments = {**defaults, **arguments} if kind in ("SET", "RigL") else arguments
        model, refused = train(model, (kind, arguments, ending), tmp_path)
        assert not refused or (name == "GradualPruning" and "last" in first)
