"""DS-TD3 and DS-SAC (Sokar et al., IJCAI 2022): sparsities that follow from the lambdas of section 4.4 and appendix A."""

import pytest

from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.masks.plan import LayerInfo, make_plan

DIMENSIONS = {"HalfCheetah": (17, 6), "Hopper": (11, 3), "Walker2d": (17, 6), "Ant": (111, 8), "Humanoid": (376, 17)}


def td3_layers(n_observations, n_actions, heads=1):
    layers = [
        LayerInfo("actor.0", "actor", (256, n_observations), 0),
        LayerInfo("actor.2", "actor", (256, 256), 1),
        *(LayerInfo(f"actor.head{index}", "actor", (n_actions, 256), 2) for index in range(heads)),
    ]
    for critic in ("qf0", "qf1"):
        layers += [
            LayerInfo(f"critic.{critic}.0", "critic", (256, n_observations + n_actions), 0),
            LayerInfo(f"critic.{critic}.2", "critic", (256, 256), 1),
            LayerInfo(f"critic.{critic}.4", "critic", (1, 256), 2),
        ]
    return layers


def ds_plan(env, epsilons, heads=1):
    config = SparsityConfig(distribution={"er_epsilon": epsilons})
    return make_plan(config, td3_layers(*DIMENSIONS[env], heads=heads))


def total_sparsity(plan):
    return 1 - sum(layer.n_active for layer in plan.values()) / sum(layer.info.n_weights for layer in plan.values())


@pytest.mark.parametrize(
    ("env", "epsilons", "actor", "critic", "total"),
    [
        ("HalfCheetah", [7, 64], 0.439, 0.332, 0.506),
        ("Hopper", [7, 64], 0.664, 0.527, 0.494),
        ("Ant", [40, 64], 0.517, 0.492, 0.496),
        ("Humanoid", [61, 64], 0.401, 0.393, 0.557),
    ],
)
def test_densities_of_ds_td3(env, epsilons, actor, critic, total):
    plan = ds_plan(env, epsilons)
    density = {name: layer.n_active / layer.info.n_weights for name, layer in plan.items()}
    assert density["actor.0"] == pytest.approx(actor, abs=5e-4)
    assert density["critic.qf0.0"] == pytest.approx(critic, abs=5e-4)
    assert density["actor.2"] == density["critic.qf1.2"] == 0.5
    assert density["actor.head0"] == density["critic.qf0.4"] == 1.0
    assert total_sparsity(plan) == pytest.approx(total, abs=6e-4)


@pytest.mark.parametrize(
    ("env", "epsilons", "total"),
    [
        ("HalfCheetah", [12, 80], 0.369),
        ("Hopper", [7, 20], 0.816),
        ("Ant", [30, 64], 0.530),
        ("Humanoid", [61, 64], 0.552),
    ],
)
def test_sparsities_of_ds_sac(env, epsilons, total):
    assert total_sparsity(ds_plan(env, epsilons, heads=2)) == pytest.approx(total, abs=2e-3)
