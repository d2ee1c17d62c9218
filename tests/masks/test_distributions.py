"""Distributions and plans: hand-worked tables, published per-layer sparsities and properties."""

import json
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.config import DEFAULT_SPARSITY, SparsityConfig
from sb3_sparse.masks.distributions import apportion, er_densities, er_factor, uniform_densities
from sb3_sparse.masks.plan import LayerInfo, make_plan

MLP = [
    LayerInfo("actor.mu.0", "actor", (256, 11), 0),
    LayerInfo("actor.mu.2", "actor", (256, 256), 1),
    LayerInfo("actor.mu.4", "actor", (3, 256), 2),
    LayerInfo("critic.qf0.0", "critic", (256, 14), 0),
    LayerInfo("critic.qf1.0", "critic", (256, 14), 0),
    LayerInfo("critic.qf0.2", "critic", (256, 256), 1),
    LayerInfo("critic.qf1.2", "critic", (256, 256), 1),
    LayerInfo("critic.qf0.4", "critic", (1, 256), 2),
    LayerInfo("critic.qf1.4", "critic", (1, 256), 2),
]


def plan_of(layers=MLP, **kwargs):
    return make_plan(SparsityConfig(**kwargs), layers)


def sparsities(plan, network=None):
    return {
        name: 1 - layer.n_active / layer.info.n_weights
        for name, layer in plan.items()
        if network is None or layer.info.network == network
    }


def network_total(plan, network):
    members = [layer for layer in plan.values() if layer.info.network == network]
    return sum(layer.n_active for layer in members), sum(layer.info.n_weights for layer in members)


def test_er_factor_by_hand():
    assert er_factor((256, 11)) == pytest.approx(267 / 2816)
    assert er_factor((32, 4, 8, 8)) == pytest.approx(36 / 128)
    assert er_factor((32, 4, 8, 8), kernel=True) == pytest.approx(52 / 8192)
    assert er_factor((256, 11), kernel=True) == er_factor((256, 11))


def test_er_solves_again_when_a_layer_is_over_full():
    # Two layers of 10 x 10 and 1 x 10: factors .2 and 1.1; keep 40 of 110.
    # One epsilon: 40 / (20 + 11) = 1.29 -> density 1.42 of the small one, so it is dense and the big one keeps 30 of 100.
    assert er_densities({"big": (10, 10), "small": (1, 10)}, 40) == pytest.approx({"big": 0.3, "small": 1.0})


def test_uniform_by_hand():
    assert uniform_densities({"a": (10, 10), "b": (1, 10)}, 11) == pytest.approx({"a": 0.1, "b": 0.1})


def test_apportion_by_hand():
    assert apportion({"a": 1.5, "b": 1.4, "c": 7.1}, {"a": 9, "b": 9, "c": 9}, 10) == {"a": 2, "b": 1, "c": 7}
    assert apportion({"a": 0.2, "b": 9.8}, {"a": 9, "b": 20}, 10) == {"a": 1, "b": 9}  # one at least
    with pytest.raises(ValueError, match="cannot be spread"):
        apportion({"a": 1.0}, {"a": 1}, 2)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1), st.floats(0, 1))
def test_apportion_is_exact(limits, density):
    total = max(round(density * sum(limits.values())), len(limits))
    counts = apportion({name: density * limit for name, limit in limits.items()}, limits, total)
    assert sum(counts.values()) == total
    assert all(1 <= counts[name] <= limits[name] for name in limits)


LAYERS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 64), st.integers(1, 64)),
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=6,
).map(lambda shapes: [LayerInfo(f"net.{i}", "net", shape, i) for i, shape in enumerate(shapes)])


@given(LAYERS, st.floats(0, 0.99), st.sampled_from(["uniform", "er", "erk"]))
def test_unstructured_networks_hit_their_total_to_the_unit(layers, sparsity, distribution):
    total = sum(layer.n_weights for layer in layers)
    n_keep = round((1 - sparsity) * total)
    if n_keep < len(layers):
        with pytest.raises(ValueError, match="cannot be reached"):
            plan_of(layers, sparsity=sparsity, distribution=distribution)
        return
    plan = plan_of(layers, sparsity=sparsity, distribution=distribution)
    assert sum(layer.n_active for layer in plan.values()) == n_keep
    assert all(1 <= layer.n_active <= layer.info.n_weights for layer in plan.values())
    shapes = {layer.name: layer.shape for layer in layers}
    if distribution == "uniform":
        densities = uniform_densities(shapes, n_keep)
    else:
        densities = er_densities(shapes, n_keep, kernel=distribution == "erk")
    wanted = {layer.name: densities[layer.name] * layer.n_weights for layer in layers}
    if min(wanted.values()) >= 1:  # otherwise the floor of one weight takes from others
        assert all(abs(layer.n_active - wanted[name]) <= 1 + 1e-6 for name, layer in plan.items())


@given(LAYERS, st.floats(0.01, 1), st.booleans())
def test_er_law(layers, density, kernel):
    """All layers that are not full have one epsilon, no full layer would be thinner with it, and the total is met."""
    shapes = {layer.name: layer.shape for layer in layers}
    n_keep = density * sum(layer.n_weights for layer in layers)
    densities = er_densities(shapes, n_keep, kernel=kernel)
    assert sum(densities[layer.name] * layer.n_weights for layer in layers) == pytest.approx(n_keep)
    epsilons = [densities[name] / er_factor(shape, kernel=kernel) for name, shape in shapes.items() if densities[name] < 1]
    if epsilons:
        assert epsilons == pytest.approx([epsilons[0]] * len(epsilons))
        assert all(epsilons[0] * er_factor(shapes[name], kernel=kernel) >= 1 - 1e-9 for name in shapes if densities[name] == 1)


@given(LAYERS, st.floats(0.01, 0.9), st.integers(1, 5), st.integers(1, 5))
def test_blocks_are_as_near_as_whole_blocks_allow(layers, sparsity, rows, columns):
    try:
        plan = plan_of(layers, sparsity=sparsity, distribution="uniform", pattern=f"block:{rows}x{columns}")
    except ValueError as error:
        assert "impossible for layer" in str(error) or "cannot be reached" in str(error)
        return
    for layer in plan.values():
        wanted = (1 - sparsity) * layer.info.n_weights
        # Half a block in each of four size classes, or the one block that is kept at least
        assert abs(layer.n_active - wanted) <= 2 * rows * columns


def test_erk_of_nature_cnn():
    """The ERK densities of DQN's network at 90 % (conv .267/.133/.153, fc .096, head 1.0), to three decimals."""
    shapes = {"c0": (32, 4, 8, 8), "c2": (64, 32, 4, 4), "c4": (64, 64, 3, 3), "fc": (512, 3136), "head": (6, 512)}
    layers = [LayerInfo(name, "q_net", shape, depth) for depth, (name, shape) in enumerate(shapes.items())]
    densities = {
        name: layer.n_active / prod(layer.info.shape)
        for name, layer in plan_of(layers, sparsity=0.9, distribution="erk").items()
    }
    assert densities == pytest.approx({"c0": 0.267, "c2": 0.133, "c4": 0.153, "fc": 0.096, "head": 1.0}, abs=1e-3)


def test_twin_critics_form_one_pool():
    plan = plan_of(sparsity={"critic": 0.95}, distribution="er")
    kept, total = network_total(plan, "critic")
    assert kept == round(0.05 * total)
    assert sparsities(plan, "critic") == pytest.approx(
        {f"critic.qf{i}.{layer}": value for i in (0, 1) for layer, value in ((0, 0.690), (2, 0.968), (4, 0.0))}, abs=1e-3
    )
    assert set(sparsities(plan, "actor").values()) == {0.0}


def test_defaults_are_sparse():
    plan = plan_of()
    for network in ("actor", "critic"):
        kept, total = network_total(plan, network)
        assert kept == round((1 - DEFAULT_SPARSITY) * total)


def test_dense_layers_count_against_the_total():
    plan = plan_of(sparsity=0.9, dense_layers=["first", "critic.qf*.4"])
    for network in ("actor", "critic"):
        kept, total = network_total(plan, network)
        assert kept == round(0.1 * total)
    exempt = {name for name, layer in plan.items() if layer.exempt}
    assert exempt == {"actor.mu.0", "critic.qf0.0", "critic.qf1.0", "critic.qf0.4", "critic.qf1.4"}
    last = {name for name, layer in plan_of(dense_layers="last").items() if layer.exempt}
    assert last == {"actor.mu.4", "critic.qf0.4", "critic.qf1.4"}


def test_explicit_map_and_globs():
    plan = plan_of(distribution={"actor.mu.2": 0.5, "critic.qf?.2": 0.75})
    assert {name: value for name, value in sparsities(plan).items() if value} == {
        "actor.mu.2": 0.5,
        "critic.qf0.2": 0.75,
        "critic.qf1.2": 0.75,
    }
    assert not any(layer.exempt for layer in plan.values())


def test_er_epsilon_by_depth_and_by_name_are_the_same():
    by_depth = plan_of(distribution={"er_epsilon": [7, 64]})
    by_name = plan_of(distribution={"er_epsilon": {"*.0": 7, "*.2": 64}})
    assert [layer.n_active for layer in by_depth.values()] == [layer.n_active for layer in by_name.values()]
    # lambda * (in + out), exactly
    assert by_depth["actor.mu.0"].n_active == 7 * (256 + 11)
    assert by_depth["actor.mu.2"].n_active == 64 * 512
    assert by_depth["actor.mu.4"].n_active == 3 * 256
    skipped = plan_of(distribution={"er_epsilon": [None, 64]})
    assert skipped["actor.mu.0"].n_active == 256 * 11
    huge = plan_of(distribution={"er_epsilon": [1000]})
    assert huge["actor.mu.0"].n_active == 256 * 11


def test_n_of_m_implies_its_sparsity():
    for kwargs in ({}, {"sparsity": 0.5}, {"distribution": "uniform"}, {"sparsity": {"actor": 0.5, "critic": 0.5}}):
        plan = plan_of(pattern="2:4", **kwargs)
        assert plan["actor.mu.2"].n_active == 256 * 128
        assert plan["actor.mu.0"].n_active == 256 * 6
    mixed = plan_of(pattern="2:4", sparsity={"critic": 0.5})
    assert mixed["actor.mu.2"].n_active == 256 * 256
    assert not mixed["actor.mu.2"].exempt
    mapped = plan_of(pattern="1:4", distribution={"*.2": 0.75})
    assert mapped["actor.mu.2"].n_active == 256 * 64


def test_configs_are_json():
    config = SparsityConfig(sparsity={"actor": 0.98}, distribution="er", dense_layers=["last"], mask_seed=3)
    assert SparsityConfig(**json.loads(json.dumps(config.as_kwargs()))) == config


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(sparsity=1.0), r"`sparsity` must be a number in \[0, 1\), got 1.0"),
        (dict(sparsity=-0.1), r"got -0.1"),
        (dict(sparsity=float("nan")), r"got nan"),
        (dict(sparsity="0.9"), r"got '0.9'"),
        (dict(sparsity=True), r"got True"),
        (dict(sparsity={"actor": 2}), r"`sparsity` of network 'actor' must be a number in \[0, 1\), got 2"),
        (dict(sparsity={"Actor": 0.5}), r"unknown network 'Actor'; the networks of this policy are: actor, critic"),
        (dict(distribution="ERK"), r"`distribution` must be \"uniform\", \"er\", \"erk\".* got 'ERK'"),
        (dict(distribution={}), "empty map"),
        (dict(distribution={"actor.mu.9": 0.5}), r"unknown layer 'actor.mu.9'; the layers of this policy are: actor.mu.0, "),
        (dict(distribution={"actor.mu.0": 1.5}), r"of layer 'actor.mu.0' must be a number in \[0, 1\), got 1.5"),
        (dict(distribution={"actor.mu.0": 0.5}, sparsity=0.5), "leave it out"),
        (dict(distribution={"er_epsilon": [0]}), "er_epsilon at depth 0 must be a positive number, got 0"),
        (dict(distribution={"er_epsilon": {"x": 3}}), "unknown layer 'x'"),
        (dict(distribution={"er_epsilon": {"*": -3}}), r"er_epsilon of layer '\*' must be a positive number, got -3"),
        (dict(distribution={"er_epsilon": 7}), "takes a list of epsilons"),
        (dict(distribution={"er_epsilon": [7], "actor.mu.0": 0.5}), "nothing beside it"),
        (dict(distribution={"er_epsilon": [7]}, pattern="2:4"), "it is uniform"),
        (dict(distribution="er", pattern="2:4"), "cannot be used with `pattern`='2:4'"),
        (dict(distribution={"actor.mu.2": 0.3}, pattern="2:4"), "means 0.5"),
        (dict(pattern="4:2"), "`pattern` must be"),
        (dict(pattern="2:4", sparsity=0.75), "disagree: the pattern means a sparsity of 0.5"),
        (dict(pattern="2:16"), r"impossible for layer 'actor.mu.0': it has 11 inputs per row, fewer than M=16"),
        (dict(pattern="block:512x512"), "one block covers all its 256 outputs x 256 inputs"),
        (dict(dense_layers="middle"), "`dense_layers` names the unknown layer 'middle'"),
        (dict(dense_layers=3), "`dense_layers` must be"),
        (dict(sparsity=0.98, dense_layers=["first"]), "cannot be reached: .* at most 0.95"),
        (dict(sparsity=0.99999), "cannot be reached"),
        (dict(initial_mask="zeros"), "`initial_mask` must be one of 'random', 'magnitude', got 'zeros'"),
        (dict(mask_seed=-1), "`mask_seed` must be None or an integer"),
        (dict(mask_seed=1.5), "got 1.5"),
    ],
)
def test_bad_input_names_argument_value_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**kwargs)
