"""A long training of a small network with every callback: memory stays flat, and every count is exact to the end."""

import os
import resource
from pathlib import Path

import pytest
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

import sb3_sparse
from sb3_sparse import (
    DelayedNStep,
    DynamicNStepReplayBuffer,
    DynamicReplayCapacity,
    GradualPruning,
    QuantizationAware,
    RigL,
    RunCheckpoint,
    SparsityLogger,
)

#: Gradient steps; SOAK_STEPS says otherwise.
STEPS = int(os.environ.get("SOAK_STEPS", "1000000"))
PER_STEP = 20


def memory():
    """MB that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Look(BaseCallback):
    """Look at everything a hundred times."""

    def __init__(self):
        super().__init__()
        self.memory = []
        self.n_active = []

    def _on_step(self):
        if self.num_timesteps % max(STEPS // PER_STEP // 100, 1) == 0:
            sparsifier = sb3_sparse.sparse_policy(self.model).sparsifier
            assert sparsifier.violations() == []
            self.memory.append(memory())
            self.n_active.append({name: layer.n_active for name, layer in sparsifier.layers.items()})
        return True


METHODS = {
    "moving masks": (
        {"sparsity": 0.8},
        lambda: [
            RigL(every=100, drop_fraction=0.3),
            DelayedNStep(3, delay=1_000),
            DynamicReplayCapacity(every=500, n_oldest=64, min_size=500, threshold=0.2),
        ],
    ),
    "pruned and quantized": ({"sparsity": 0.0}, lambda: [GradualPruning(0.9, updates=100), QuantizationAware()]),
}


@pytest.mark.expensive
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("method", METHODS)
def test_a_long_training(method, tmp_path):
    sparse, make = METHODS[method]
    model = TD3(
        "SparseMlpPolicy",
        "Pendulum-v1",
        policy_kwargs=dict(net_arch=[16, 16], **sparse),
        replay_buffer_class=DynamicNStepReplayBuffer,
        buffer_size=2_000,
        batch_size=16,
        learning_starts=0,
        gradient_steps=PER_STEP,
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(str(tmp_path), ["csv"]))
    look, every = Look(), max(STEPS // PER_STEP // 20, 1)
    model.learn(STEPS // PER_STEP, callback=[*make(), SparsityLogger(), look, RunCheckpoint(every, folder=tmp_path)])
    sparsifier = sb3_sparse.sparse_policy(model).sparsifier
    # The first step brings no transition of n steps, and so on: what was made was counted
    assert sparsifier.n_steps("critic") == model._n_updates == STEPS
    assert sparsifier.n_steps("actor") == STEPS // model.policy_delay
    if method == "moving masks":
        assert all(counts == look.n_active[0] for counts in look.n_active)
    else:
        plan = sparsifier.plan
        assert look.n_active[-1] == {name: layer.n_active for name, layer in sparsifier.layers.items()}
        totals = [sum(counts.values()) for counts in look.n_active]
        assert totals == sorted(totals, reverse=True)
        assert totals[-1] < 0.15 * totals[0]
        assert plan.keys() == look.n_active[-1].keys()
    # What the first tenth has not allocated, nobody will
    first, last = max(look.memory[5:15]), max(look.memory[-10:])
    print(f"{method}: {STEPS:,} gradient steps, {first:.0f} MB after a tenth, {last:.0f} MB at the end")
    assert last - first < 24, look.memory
