"""Which parts of a policy the native engine may run, and what it may leave out there."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_sparse.engine.choice import Choice
from sb3_sparse.engine.sequence import Ensemble, SparseSequential
from sb3_sparse.engine.survivors import TARGET_UPDATES
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
    critic = find_submodule(policy, "critic")
    if critic is not None and find_submodule(policy, "actor") is not None:
        # The actor's loss comes by the critic's weights. Every stock algorithm with these two networks clears the critic's
        # gradients before its own loss, so nobody misses them. Where features are trained the input always wants gradients
        extractor = getattr(critic, "features_extractor", None)
        if extractor is not None and not any(True for _ in extractor.parameters()):
            for module in critic.modules():
                if module in adopted:
                    assert isinstance(module, SparseSequential)
                    module.frozen_for_inputs = True
    for prefix in ("critic", "critic_target"):
        owner: Any = find_submodule(policy, prefix)
        members = getattr(owner, "q_networks", None)
        if isinstance(members, list) and all(member in adopted for member in members):
            owner.q_networks = Ensemble(members)
    targets = [find_submodule(policy, prefix) for prefix in ONLINE_OF_TARGET]
    in_targets = {module for target in targets if target is not None for module in target.modules()}
    return [sequence for sequence in sequences if sequence in adopted and sequence not in in_targets]  # type: ignore[misc]
