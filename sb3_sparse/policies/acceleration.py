"""Which parts of a policy the native engine may run."""

from __future__ import annotations

from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_sparse.engine.callers import TARGET_UPDATES
from sb3_sparse.engine.choice import Choice
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.policies.structure import ONLINE_OF_TARGET, find_submodule

TARGET_UPDATES.add(polyak_update.__code__)


def adopt_sequences(policy: nn.Module, choice: Choice) -> list[SparseSequential]:
    """
    Let every sequence of sparse layers in a policy run natively where the engine is to be used.

    :param policy: A policy whose layers are sparse already.
    :param choice: What decides on the engine.
    :return: The online sequences; those of target networks are adopted too.
    """
    if not choice.possible:
        return []
    sequences = [module for module in policy.modules() if isinstance(module, nn.Sequential)]
    adopted = {sequence for sequence in sequences if SparseSequential.adopt(sequence, choice)}
    targets = [find_submodule(policy, prefix) for prefix in ONLINE_OF_TARGET]
    in_targets = {module for target in targets if target is not None for module in target.modules()}
    return [sequence for sequence in sequences if sequence in adopted and sequence not in in_targets]  # type: ignore[misc]
