"""
What a stock policy is made of: its networks, their prunable layers, target networks and optimizers.

Every supported algorithm is covered by two tables of module prefixes; nothing here depends on the algorithm's class.
"""

from __future__ import annotations

import re

import torch as th
from torch import nn

from sb3_sparse.masks.plan import LayerInfo
from sb3_sparse.nn.layers import SPARSE_CLASSES

#: Which network a submodule of a policy belongs to, inputs first. Prefixes that a policy lacks are skipped. A layer that
#: two networks reach is in a shared features extractor, which is a network of its own.
NETWORK_OF_PREFIX = {
    "actor": "actor",
    "q_net": "q_net",
    "quantile_net": "quantile_net",
    "pi_features_extractor": "actor",
    "mlp_extractor.policy_net": "actor",
    "action_net": "actor",
    "vf_features_extractor": "critic",
    "critic": "critic",
    "mlp_extractor.value_net": "critic",
    "value_net": "critic",
}
SHARED_NETWORK = "features_extractor"
ONLINE_OF_TARGET = {
    "actor_target": "actor",
    "critic_target": "critic",
    "q_net_target": "q_net",
    "quantile_net_target": "quantile_net",
}

TARGET_SUFFIX = " (target)"


def find_submodule(policy: nn.Module, prefix: str) -> nn.Module | None:
    """
    :param policy: A policy.
    :param prefix: Dotted path.
    :return: The submodule there, or None if there is none.
    """
    try:
        module = policy.get_submodule(prefix)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Module) else None


def _depth_key(name: str) -> str:
    """The same for layers that lie side by side: twin critics, extractors of several keys, the two heads of a SAC actor."""
    name = re.sub(r"\bqf\d+\b", "qf", name)
    name = re.sub(r"\bextractors\.[^.]+", "extractors", name)
    return re.sub(r"\blog_std$", "mu", name)


def find_layers(policy: nn.Module) -> list[LayerInfo]:
    """
    The prunable layers of a policy: every ``nn.Linear`` and ``nn.Conv2d`` of its online networks.

    :param policy: A stock policy, or one whose layers are sparse already.
    :return: One entry per layer, named by its first path in the policy, network by network, in order of depth.
    """
    prunable = (*SPARSE_CLASSES, *SPARSE_CLASSES.values())
    names = {module: name for name, module in policy.named_modules() if type(module) in prunable}
    networks: dict[nn.Module, list[str]] = {}
    for prefix, network in NETWORK_OF_PREFIX.items():
        root = find_submodule(policy, prefix)
        for module in root.modules() if root is not None else ():
            if module in names and network not in networks.setdefault(module, []):
                networks[module].append(network)
    depths: dict[str, list[str]] = {}
    layers = []
    for module, reached_by in networks.items():
        network = reached_by[0] if len(reached_by) == 1 else SHARED_NETWORK
        keys = depths.setdefault(network, [])
        if (key := _depth_key(names[module])) not in keys:
            keys.append(key)
        assert isinstance(module.weight, th.Tensor)
        layers.append(LayerInfo(names[module], network, tuple(module.weight.shape), keys.index(key)))
    order = list(dict.fromkeys(layer.network for layer in layers))
    return sorted(layers, key=lambda layer: (order.index(layer.network), layer.depth))


def network_parameters(policy: nn.Module) -> dict[str, list[nn.Parameter]]:
    """
    All parameters of each network, biases and normalisation included.

    :param policy: A policy.
    :return: Parameters by network; those of a target network under ``"<network> (target)"``. A parameter is in one list
        only, and in none if it belongs to no network (an LSTM, PPO's ``log_std``).
    """
    networks: dict[str, list[nn.Parameter]] = {}
    reached: dict[nn.Parameter, list[str]] = {}
    for prefix, network in NETWORK_OF_PREFIX.items():
        root = find_submodule(policy, prefix)
        for parameter in root.parameters() if root is not None else ():
            if network not in reached.setdefault(parameter, []):
                reached[parameter].append(network)
    for parameter, names in reached.items():
        networks.setdefault(names[0] if len(names) == 1 else SHARED_NETWORK, []).append(parameter)
    met: set[nn.Parameter] = set()
    for prefix, network in ONLINE_OF_TARGET.items():
        root = find_submodule(policy, prefix)
        if root is not None:
            # A features extractor that two targets share counts once
            networks[network + TARGET_SUFFIX] = [parameter for parameter in root.parameters() if parameter not in met]
            met.update(root.parameters())
    return networks


def find_optimizers(policy: nn.Module) -> dict[str, th.optim.Optimizer]:
    """
    :param policy: A policy.
    :return: Its optimizers by the path of their owner, e.g. ``actor`` and ``critic``, or ``policy`` for the policy itself.
    """
    return {
        path.replace(".", "_") or "policy": module.optimizer
        for path, module in policy.named_modules()
        if isinstance(getattr(module, "optimizer", None), th.optim.Optimizer)
    }
