"""What updaters remember: declared fields, the names of their buffers in files, and values that do not fit."""

import pytest
import torch as th
from stable_baselines3 import TD3

from sb3_sparse import SET, GradualPruning, MaskRefresh, RigL
from sb3_sparse.nn.updater_state import NetworkState, Numbers, PerLayer, PerMoment, Scalar, UpdaterState
from tests.helpers import make_model


class Example(NetworkState):
    count = Scalar[int](th.int64, key="n")
    done = Scalar[bool](th.bool)
    counts = Numbers()
    seen = PerLayer(th.bool)
    shadow = PerLayer()
    memory = PerMoment()


class Extended(Example):
    count = Scalar[int](th.int64, key="other")
    more = Scalar[float](th.float32)


def state_of(cls=Example, store=None):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    sparsifier = model.policy.sparsifier
    layers = {name: sparsifier.layers[name] for name in sparsifier.networks["actor"]}
    return cls(UpdaterState() if store is None else store, "actor", layers)


def test_fields_read_what_was_written():
    state = state_of()
    assert (state.count, state.done, state.counts, dict(state.seen), state.memory.of("actor.mu.0")) == (
        None,
        None,
        None,
        {},
        {},
    )
    state.count, state.done, state.counts = 3, True, [4, 5]
    assert (state.count, state.done, state.counts) == (3, True, [4, 5])
    state.counts = []
    assert state.counts == []
    mask = state.layers["actor.mu.0"].weight_mask.clone()
    state.seen["actor.mu.0"] = mask
    assert state.seen["actor.mu.0"] is mask
    assert list(state.seen) == ["actor.mu.0"]
    assert "actor.mu.2" not in state.seen
    with pytest.raises(KeyError):
        state.seen["actor.mu.2"]
    moment = th.zeros_like(state.layers["actor.mu.2"].weight)
    state.memory.set("actor.mu.2", "exp_avg", moment)
    assert state.memory.of("actor.mu.2") == {"exp_avg": moment}
    assert state.memory.get("actor.mu.0", "exp_avg") is None
    names = set(dict(state.store.named_buffers()))
    assert names == {"actor/n", "actor/done", "actor/counts", "actor/seen/actor~mu~0", "actor/memory/actor~mu~2/exp_avg"}


def test_a_subclass_has_the_fields_of_both():
    assert list(Extended.fields) == ["count", "done", "counts", "seen", "shadow", "memory", "more"]
    state = state_of(Extended)
    state.count, state.more = 1, 0.5
    assert set(dict(state.store.named_buffers())) == {"actor/other", "actor/more"}
    assert state_of(Example, state.store).count is None
    assert isinstance(Example.count, Scalar)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n", th.tensor(1.5), r"'n' must be torch.int64 of shape \(\), it is torch.float32 of shape \(\)"),
        ("n", th.tensor([1, 2]), r"'n' must be torch.int64 of shape \(\), it is torch.int64 of shape \(2,\)"),
        ("done", th.tensor(1), "'done' must be torch.bool"),
        ("counts", th.tensor([0.5]), "'counts' must be torch.int64"),
        ("counts", th.zeros(2, 2, dtype=th.int64), r"'counts' must be torch.int64 of shape \(4,\)"),
        ("seen/actor.mu.0", th.zeros(16, 7), r"'seen/actor.mu.0' must be torch.bool of shape \(16, 7\)"),
        (
            "shadow/actor.mu.2",
            th.zeros(3, 3),
            r"'shadow/actor.mu.2' must be torch.float32 of shape \(12, 16\), it is .* \(3, 3\)",
        ),
        (
            "memory/actor.mu.2/exp_avg",
            th.zeros(3, 3),
            r"'memory/actor.mu.2/exp_avg' must be torch.float32 of shape \(12, 16\)",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(key, value, message):
    state = state_of()
    state.memory.set("actor.mu.0", "step", th.tensor(7.0))  # a count of steps
    state.store.set("actor", "of another updater", th.zeros(5))
    state.check()
    state.store.set("actor", key, value)
    with pytest.raises(ValueError, match=f"remembers of network 'actor' does not fit the network: {message}"):
        state.check()


def test_a_damaged_file_is_refused_before_the_training(tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    model.learn(40, callback=SET(2, 0.3))
    model.policy.sparsifier.updater_state.set("critic", "period", th.tensor(0.5))
    model.save(tmp_path / "model.zip")
    loaded = TD3.load(tmp_path / "model.zip", env=model.get_env())
    with pytest.raises(ValueError, match=r"of network 'critic' does not fit the network: 'period' must be torch.int64"):
        loaded.learn(40, callback=SET(2, 0.3))
    assert loaded.num_timesteps == 0


#: Names, dtypes and shapes of what files have held since the first release; ``<layer>`` stands for every layer's.
SINCE_EVER = {
    "SET": {
        "ever_active/<layer>": (th.bool, "weight"),
        "period": (th.int64, ()),
        "finished": (th.bool, ()),
        "own_target": (th.bool, ()),
    },
    "RigL": {
        "remembered_at": (th.int64, ()),
        "memory/<layer>/exp_avg": (th.float32, "weight"),
        "memory/<layer>/exp_avg_sq": (th.float32, "weight"),
    },
    "MaskRefresh": {
        "ever_active/<layer>": (th.bool, "weight"),
        "period": (th.int64, ()),
        "shadow/<layer>": (th.float32, "weight"),
        "moment/<layer>/step": (th.float32, ()),
        "moment/<layer>/exp_avg": (th.float32, "weight"),
        "moment/<layer>/exp_avg_sq": (th.float32, "weight"),
    },
    "GradualPruning": {
        "ever_active/<layer>": (th.bool, "weight"),
        "pruning_done": (th.int64, ()),
        "pruning_initial": (th.int64, (3,)),
        "pruning_goal": (th.int64, (4,)),
        "pruning_schedule": (th.int64, (3,)),
    },
}
SINCE_EVER["RigL"] |= SINCE_EVER["SET"]


@pytest.mark.parametrize(
    ("name", "callback", "policy_kwargs"),
    [
        ("SET", SET(2, 0.3), dict(sparsity=0.6, distribution="uniform")),
        ("RigL", RigL(2, 0.3, moments="keep"), dict(sparsity=0.6, distribution="uniform")),
        ("MaskRefresh", MaskRefresh(2, "ste"), dict(pattern="2:4")),
        ("GradualPruning", GradualPruning(0.9, 0, 60), dict(sparsity=0.0, distribution="uniform")),
    ],
)
def test_names_in_files_are_those_of_ever(name, callback, policy_kwargs):
    model = make_model(TD3, policy_kwargs=policy_kwargs)
    model.learn(60, callback=callback)
    sparsifier = model.policy.sparsifier
    found = {
        key: (value.dtype, tuple(value.shape))
        for key, value in sparsifier.updater_state.named_buffers()
        if key.startswith("actor/")
    }
    expected = {}
    for key, (dtype, shape) in SINCE_EVER[name].items():
        for layer in sparsifier.networks["actor"] if "<layer>" in key else [""]:
            full = tuple(sparsifier.layers[layer].weight.shape) if shape == "weight" else shape
            expected[f"actor/{key}".replace("<layer>", layer).replace(".", "~")] = (dtype, full)
    assert found == expected
