"""
What a policy is made of: its networks, their prunable layers, what cannot be pruned, target networks and optimizers.

Every stock policy is covered by two tables of module prefixes; nothing here depends on the algorithm's class. What the tables
do not reach in a policy of somebody's own is found by what it does: which layers run when the policy decides and judges, and
which parameters an optimizer owns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch as th
from stable_baselines3.common.policies import BaseModel
from torch import nn
from torch.nn.utils import parametrize

from sb3_sparse.masks.plan import LayerInfo
from sb3_sparse.nn.layers import SPARSE_CLASSES
from sb3_sparse.policies.usage import Usage, watch

#: Which network a submodule of a policy belongs to, inputs first. Prefixes that a policy lacks are skipped. A layer that
#: two networks reach is in a shared features extractor, which is a network of its own.
NETWORK_OF_PREFIX = {
    "actor": "actor",
    "q_net": "q_net",
    "quantile_net": "quantile_net",
    "pi_features_extractor": "actor",
    "lstm_actor": "actor",
    "mlp_extractor.policy_net": "actor",
    "action_net": "actor",
    "vf_features_extractor": "critic",
    "lstm_critic": "critic",
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
#: Packages whose modules call their layers as layers are meant to be called.
_KNOWN_PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "sb3_sparse")
#: Modules whose parameters scale and shift every value alone, however many dimensions they have.
_ELEMENTWISE = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
)


@dataclass(frozen=True)
class LeftOut:
    """
    Weights of an online network that cannot be sparse: they stay dense, whatever is asked for.

    :param name: Path of the module that holds them.
    :param kind: Class of the module.
    :param network: Name of the network they belong to.
    :param n_weights: How many there are; vectors (biases, normalisation) are none.
    :param reason: Why they are left out.
    """

    name: str
    kind: str
    network: str
    n_weights: int
    reason: str


@dataclass(frozen=True)
class Structure:
    """
    What of a policy is prunable, and what is not.

    :param layers: Prunable layers, network by network, in order of depth, each by its first path.
    :param left_out: Weights that cannot be sparse.
    :param bypassed: Prunable layers whose weight is used outside of their forward, too, by name.
    :param is_strange: Whether anything in the policy may use its layers in its own way.
    :param network_of: Network of every module that holds parameters and that the table of prefixes does not reach, by path.
    """

    layers: list[LayerInfo]
    left_out: list[LeftOut] = field(default_factory=list)
    bypassed: frozenset[str] = frozenset()
    is_strange: bool = False
    network_of: Mapping[str, str] = field(default_factory=dict)


def find_submodule(policy: nn.Module, prefix: str) -> nn.Module | None:
    """
    A submodule by its path.

    :param policy: A policy.
    :param prefix: Dotted path.
    :return: The submodule there, or None if there is none.
    """
    try:
        module = policy.get_submodule(prefix)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Module) else None


# --- Layers ---


def _depth_key(name: str) -> str:
    """The same for layers that lie side by side: twin critics, extractors of several keys, the two heads of a SAC actor."""
    name = re.sub(r"\bqf\d+\b|\bq_networks\.[^.]+", "qf", name)
    name = re.sub(r"\bextractors\.[^.]+", "extractors", name)
    return re.sub(r"\blog_std$", "mu", name)


def _why_not(module: nn.Module, tied: Mapping[nn.Parameter, list[str]], name: str) -> str:
    """Why a module with weights of its own cannot be sparse, nothing if it can."""
    if parametrize.is_parametrized(module):
        kinds = [type(one).__name__.lstrip("_") for chain in module.parametrizations.values() for one in chain]  # type: ignore[operator]
        return f"its weight is made by a parametrisation ({', '.join(kinds)})"
    prunable = (*SPARSE_CLASSES, *SPARSE_CLASSES.values())
    if type(module) not in prunable:
        if isinstance(module, prunable):
            return f"a subclass of nn.{'Linear' if isinstance(module, nn.Linear) else 'Conv2d'} may have a forward of its own"
        return "only nn.Linear and nn.Conv2d can be sparse"
    if "weight" not in module._parameters:
        made_of = ", ".join(key for key in module._parameters if key.startswith("weight"))
        return f"its weight is made of other parameters ({made_of}), as by torch.nn.utils.weight_norm, spectral_norm or prune"
    others = [other for other in tied.get(module._parameters["weight"], []) if other != name]  # type: ignore[arg-type]
    if others:
        return f"its weight is that of {', '.join(others)}, too"
    return ""


def _is_strange(policy: nn.Module) -> bool:
    """Whether there is anything in a policy that may use its layers in its own way."""
    classes = {type(module) for module in policy.modules()} - {type(policy)}
    # The sparse counterpart of a stock policy is made of nothing else
    classes |= {cls for cls in type(policy).__mro__ if issubclass(cls, BaseModel)}
    return any(cls.__module__.split(".")[0] not in _KNOWN_PACKAGES for cls in classes)


def _reached(policy: nn.Module) -> dict[nn.Module, list[str]]:
    """Networks by module, as far as the table of prefixes goes."""
    networks: dict[nn.Module, list[str]] = {}
    for prefix, network in NETWORK_OF_PREFIX.items():
        root = find_submodule(policy, prefix)
        for module in root.modules() if root is not None else ():
            if network not in networks.setdefault(module, []):
                networks[module].append(network)
    return networks


def _network(names: list[str]) -> str:
    return names[0] if len(names) == 1 else SHARED_NETWORK


def _own_weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights that a module itself holds. Vectors scale or shift, they do not mix; ``log_std`` is generalised SDE's noise."""
    if isinstance(module, _ELEMENTWISE):
        return []
    skipped = "log_std" if isinstance(module, BaseModel) else None
    return [value for name, value in module.named_parameters(recurse=False) if value.ndim > 1 and name != skipped]


class _Finder:
    """Finds out what the modules of one policy are."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.names = {module: name for name, module in policy.named_modules()}
        in_targets = set()
        for prefix in ONLINE_OF_TARGET:
            root = find_submodule(policy, prefix)
            in_targets |= set(root.modules()) if root is not None else set()
        self.reached = _reached(policy)
        #: Modules that hold parameters, of online networks alone.
        self.modules = [
            module
            for module in self.names
            if (module in self.reached or module not in in_targets) and any(True for _ in module.parameters(recurse=False))
        ]
        self.owned_by: dict[nn.Parameter, list[str]] = {}
        for name, optimizer in find_optimizers(policy).items():
            for group in getattr(optimizer, "param_groups", ()):
                for parameter in group["params"]:
                    self.owned_by.setdefault(parameter, []).append(name)
        tied: dict[nn.Parameter, list[str]] = {}
        for module in self.modules:
            for parameter in module.parameters(recurse=False):
                tied.setdefault(parameter, []).append(self.names[module])
        self.why_not = {module: _why_not(module, tied, self.names[module]) for module in self.modules}
        self.is_strange = _is_strange(policy)
        self.usage = self._watch()
        #: Networks of what the prefixes do not reach; None: nobody uses or trains it.
        self.network_of = {module: self._network_by_use(module) for module in self.modules if module not in self.reached}

    def _watch(self) -> Usage | None:
        # The policy itself holds log_std
        is_unknown = any(module not in self.reached and module is not self.policy for module in self.modules)
        if not is_unknown and not self.is_strange:
            return None
        return watch(self.policy, [self.names[module] for module in self.modules if not self.why_not[module]])

    def _network_by_use(self, module: nn.Module) -> str | None:
        prefix = f"{self.names[module]}." if self.names[module] else ""
        own = dict(module.named_parameters(recurse=False))
        owners = [name for parameter in own.values() for name in self.owned_by.get(parameter, ())]
        if self.usage is not None:
            paths = {f"{prefix}{name}" for name in own}
            used = [paths & self.usage.decides, paths & self.usage.judges]
            deciding = next((name for name in ("q_net", "quantile_net") if hasattr(self.policy, name)), "actor")
            if all(used):
                return SHARED_NETWORK if deciding == "actor" else deciding
            if any(used):
                return deciding if used[0] else "critic"
            if paths & self.usage.collects:
                return SHARED_NETWORK
        if not owners:
            return None
        # Trained, and used in training alone; or nothing is known of it
        by_owner = {name: name for name in NETWORK_OF_PREFIX.values()}
        if owners[0] in by_owner:
            return owners[0]
        return SHARED_NETWORK if self.usage is None else self.names[module].partition(".")[0] or SHARED_NETWORK

    def network(self, module: nn.Module) -> str | None:
        return _network(self.reached[module]) if module in self.reached else self.network_of[module]

    def layers(self) -> list[LayerInfo]:
        found: dict[str, list[nn.Module]] = {}
        # The table's order first: it is that of the networks and, within them, of what comes nearest to the observation
        for module in [*self.reached, *(module for module in self.modules if module not in self.reached)]:
            if module in self.why_not and not self.why_not[module] and (network := self.network(module)) is not None:
                found.setdefault(network, []).append(module)
        layers = []
        for network, members in found.items():
            if any(module not in self.reached for module in members) and self.usage is not None:
                order = {name: index for index, name in enumerate(self.usage.order)}
                members.sort(key=lambda module: order.get(self.names[module], len(order)))
            keys: list[str] = []
            for module in members:
                if (key := _depth_key(self.names[module])) not in keys:
                    keys.append(key)
                assert isinstance(module.weight, th.Tensor)
                layers.append(LayerInfo(self.names[module], network, tuple(module.weight.shape), keys.index(key)))
        order_of = list(found)
        return sorted(layers, key=lambda layer: (order_of.index(layer.network), layer.depth))

    def left_out(self) -> list[LeftOut]:
        found = []
        for module in self.modules:
            n_weights, network = sum(weight.numel() for weight in _own_weights(module)), self.network(module)
            if n_weights and self.why_not[module] and network is not None:
                name, reason, owner = self.names[module], self.why_not[module], module
                if isinstance(module, parametrize.ParametrizationList):
                    # It lies within the layer, which has no weight left
                    name = name.rpartition(".parametrizations")[0]
                    owner = self.policy.get_submodule(name)
                    reason = _why_not(owner, {}, name)
                found.append(LeftOut(name, type(owner).__name__, network, n_weights, reason))
        for parameter in _outside_of_modules(self.policy):
            owner = self.owned_by[parameter][0]
            reason = f"the optimizer of {owner!r} trains it, but no module holds it, so that it is not saved either"
            found.append(LeftOut("(in no module)", "Parameter", owner, parameter.numel(), reason))
        return found


def _outside_of_modules(policy: nn.Module) -> list[nn.Parameter]:
    """Weights that an optimizer trains and no module of the policy holds."""
    known = set(policy.parameters())
    owned = dict.fromkeys(
        parameter
        for optimizer in find_optimizers(policy).values()
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
    )
    return [parameter for parameter in owned if parameter not in known and parameter.ndim > 1]


def find_structure(policy: nn.Module) -> Structure:
    """
    Find out what a policy is made of.

    :param policy: A stock policy, one of somebody's own, or one whose layers are sparse already. Not changed.
    :return: Its prunable layers, every ``nn.Linear`` and ``nn.Conv2d`` of its online networks, and all other weights.
    :raises ValueError: For layers that do not know their shape yet.
    """
    for name, parameter in policy.named_parameters():
        if th.nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet: give layers their sizes, lazy ones cannot be made sparse")
    finder = _Finder(policy)
    layers = finder.layers()
    return Structure(
        layers,
        finder.left_out(),
        frozenset(finder.usage.bypassed if finder.usage is not None else ()),
        finder.is_strange,
        {finder.names[module]: network for module, network in finder.network_of.items() if network is not None},
    )


# --- Parameters ---


def weights_left_out(policy: nn.Module) -> set[nn.Parameter]:
    """
    Weights that are in no sparse layer.

    :param policy: A policy whose layers are sparse.
    :return: Those of online and target networks, and those that optimizers train outside of its modules.
    """
    sparse = tuple(SPARSE_CLASSES.values())
    held = {weight for module in policy.modules() if not isinstance(module, sparse) for weight in _own_weights(module)}
    return held | set(_outside_of_modules(policy))


def network_parameters(policy: nn.Module, structure: Structure) -> dict[str, list[nn.Parameter]]:
    """
    All parameters of each network, biases and normalisation included.

    :param policy: A policy.
    :param structure: Its structure.
    :return: Parameters by network; those of a target network under ``"<network> (target)"``. A parameter is in one list
        only, and in none if it belongs to no network (PPO's ``log_std``).
    """
    networks: dict[str, list[nn.Parameter]] = {}
    reached: dict[nn.Parameter, list[str]] = {}
    for module, names in _reached(policy).items():
        for parameter in module.parameters(recurse=False):
            reached.setdefault(parameter, []).extend(name for name in names if name not in reached[parameter])
    for path, network in structure.network_of.items():
        if path:  # what the policy itself holds belongs to no network
            for parameter in policy.get_submodule(path).parameters(recurse=False):
                reached.setdefault(parameter, [network])
    for parameter, names in reached.items():
        networks.setdefault(_network(names), []).append(parameter)
    met: set[nn.Parameter] = set()
    for prefix, network in ONLINE_OF_TARGET.items():
        root = find_submodule(policy, prefix)
        if root is not None:
            # A features extractor that two targets share counts once
            networks[network + TARGET_SUFFIX] = [parameter for parameter in root.parameters() if parameter not in met]
            met.update(root.parameters())
    return networks


# --- Optimizers ---


def find_optimizers(policy: nn.Module) -> dict[str, Any]:
    """
    The optimizers of a policy.

    :param policy: A policy.
    :return: By the path of their owner, e.g. ``actor`` and ``critic``, or ``policy`` for the policy itself: whatever is
        called ``optimizer`` there, and every ``torch.optim.Optimizer`` that has another name (``actor_<name>``) or lies in a
        list, tuple or dict (``actor_<name>_0``).
    """
    found: dict[str, Any] = {}
    for path, module in policy.named_modules():
        owner = path.replace(".", "_")
        for name, value in vars(module).items():
            if name == "optimizer":
                if value is not None and not _is_met(value, found):
                    found[owner or "policy"] = value
                continue
            items = enumerate(value) if isinstance(value, (list, tuple)) else value.items() if isinstance(value, dict) else ()
            for key, optimizer in [("", value), *((f"_{key}", item) for key, item in items)]:
                if isinstance(optimizer, th.optim.Optimizer) and not _is_met(optimizer, found):
                    found[f"{owner}_{name}{key}".strip("_").replace(".", "_")] = optimizer
    return found


def _is_met(optimizer: Any, found: Mapping[str, Any]) -> bool:
    return any(optimizer is other for other in found.values())
