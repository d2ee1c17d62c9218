"""
Units of hidden layers that became useless: those without inputs, whose output is a constant, and those without outputs.

The chains of a policy, layer after layer from the observation to the output, are found for every supported algorithm; which
of their units are dead is arithmetic on masks. A unit of a network that has a target is dead if it is so in both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch as th
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.structure import ONLINE_OF_TARGET, find_submodule

#: Activations that work on every unit alone.
_ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
_TARGET_OF_ONLINE = {online: target for target, online in ONLINE_OF_TARGET.items()}


@dataclass
class Copy:
    """
    A hidden layer in one of its networks, online or target.

    :param layer: The layer.
    :param readers: The layers that read its units, each with the number of columns of its weight, seen as a matrix, that a
        unit takes: 1, a kernel's size, or the pixels of a channel.
    """

    layer: nn.Module
    readers: list[tuple[nn.Module, int]] = field(default_factory=list)


@dataclass
class Hidden:
    """
    A hidden layer.

    :param name: Path of the online layer.
    :param width: Which number of the architecture says how many units it has: ``"pi.0"``, ``"qf.1"``, ``"net.0"``,
        ``"conv.0"``, ``"features"``; twin critics share theirs.
    :param activation: What follows it.
    :param copies: The online layer first, then the target's.
    :param is_read_elsewhere: Whether its units are needed even if no weight reads them (generalised SDE).
    """

    name: str
    width: str
    activation: nn.Module
    copies: list[Copy]
    is_read_elsewhere: bool = False


@dataclass
class Matrix:
    """
    Working copies of a layer's tensors, its weight seen as a matrix.

    :param weight: ``[outputs, inputs]``.
    :param mask: Bool, same shape.
    :param bias: ``[outputs]``, None if it has none.
    """

    weight: th.Tensor
    mask: th.Tensor
    bias: th.Tensor | None


@dataclass
class DeadUnits:
    """
    What a search for dead units has found.

    :param alive: By layer name, bool: the units that are needed.
    :param no_inputs: By layer name, how many units had no inputs (and some outputs).
    :param no_outputs: By layer name, how many had no outputs.
    :param matrices: Every layer that makes or reads hidden units, by identity, with constants folded into biases.
    """

    alive: dict[str, th.Tensor]
    no_inputs: dict[str, int]
    no_outputs: dict[str, int]
    matrices: dict[nn.Module, Matrix]

    @property
    def n_dead(self) -> int:
        """Dead units of all layers."""
        return sum(self.no_inputs.values()) + sum(self.no_outputs.values())


@dataclass(frozen=True)
class _Tower:
    """A chain of Linear layers: where it is, which widths it has, the layers behind its end and what it reads."""

    path: str
    width: str
    heads: tuple[str, ...]
    extractor: str | None
    is_read_elsewhere: bool = False


def _towers(policy: nn.Module) -> list[_Tower]:
    towers = []
    if find_submodule(policy, "actor.latent_pi") is not None:
        with_sde = find_submodule(policy, "actor.log_std") is None  # a Parameter then
        heads = ("actor.mu.0",) if with_sde else ("actor.mu", "actor.log_std")
        towers.append(_Tower("actor.latent_pi", "pi", heads, "actor.features_extractor", with_sde))
    elif find_submodule(policy, "actor.mu") is not None:
        towers.append(_Tower("actor.mu", "pi", (), "actor.features_extractor"))
    critic = find_submodule(policy, "critic")
    if critic is not None:
        names = [name for name, _ in critic.named_children() if name.startswith("qf")]
        towers += [_Tower(f"critic.{name}", "qf", (), "critic.features_extractor") for name in names]
    for net in ("q_net", "quantile_net"):
        if find_submodule(policy, f"{net}.{net}") is not None:
            towers.append(_Tower(f"{net}.{net}", "net", (), f"{net}.features_extractor"))
    if find_submodule(policy, "mlp_extractor") is not None:
        # An LSTM between the features and the chain reads the features
        recurrent = find_submodule(policy, "lstm_actor") is not None
        with_sde = bool(getattr(policy, "use_sde", False))
        for width, path, head in (("pi", "policy_net", "action_net"), ("vf", "value_net", "value_net")):
            extractor = None if recurrent else f"{width}_features_extractor"
            towers.append(_Tower(f"mlp_extractor.{path}", width, (head,), extractor, with_sde and width == "pi"))
    return towers


def _require_stock(policy: nn.Module, path: str) -> None:
    """What a class of the user's own does with its layers cannot be known."""
    owner = find_submodule(policy, path)
    if owner is not None and type(owner).__module__.split(".")[0] not in ("stable_baselines3", "sb3_contrib"):
        raise NotImplementedError(f"{path} is a {type(owner).__name__}: only networks of stock classes can be shrunk exactly")


def _chain(sequence: nn.Module, path: str) -> list[tuple[str, nn.Module, nn.Module | None]]:
    """Path, layer and activation of a Sequential; the last may have none."""
    if not isinstance(sequence, nn.Sequential):
        raise NotImplementedError(f"{path} is a {type(sequence).__name__}: only chains of layers can be shrunk exactly")
    chain: list[tuple[str, nn.Module, nn.Module | None]] = []
    for name, module in sequence.named_children():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            chain.append((f"{path}.{name}", module, None))
        elif isinstance(module, _ELEMENTWISE) and chain and chain[-1][2] is None:
            chain[-1] = (*chain[-1][:2], module)
        elif not isinstance(module, nn.Flatten):
            raise NotImplementedError(
                f"{path}.{name} is a {type(module).__name__}: only chains of Linear or Conv2d layers, each followed by one "
                "elementwise activation, can be shrunk exactly"
            )
    return chain


def _counterpart(policy: nn.Module, path: str) -> nn.Module | None:
    """The same module in the target network, if there is one."""
    root, _, rest = path.partition(".")
    return find_submodule(policy, f"{_TARGET_OF_ONLINE[root]}.{rest}") if root in _TARGET_OF_ONLINE else None


class _Finder:
    """Collects the hidden layers of a policy."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.names = {module: name for name, module in policy.named_modules()}
        self.found: dict[nn.Module, Hidden] = {}

    def towers(self) -> list[Hidden]:
        for tower in _towers(self.policy):
            _require_stock(self.policy, tower.path.partition(".")[0])
            sequence = find_submodule(self.policy, tower.path)
            assert sequence is not None
            chain = _chain(sequence, tower.path)
            heads = [(path, self.policy.get_submodule(path)) for path in tower.heads]
            layers = [(path, layer) for path, layer, _ in chain]
            if tower.extractor is not None:
                self._extractor(tower.extractor, layers[:1] or heads, tower.is_read_elsewhere and not layers)
            for index in range(len(chain) if heads else len(chain) - 1):
                is_last = index == len(chain) - 1
                hidden = self._add(*chain[index], f"{tower.width}.{index}", heads if is_last else [layers[index + 1]])
                hidden.is_read_elsewhere = tower.is_read_elsewhere and is_last
        order = {name: index for index, (name, _) in enumerate(self.policy.named_modules())}
        # From the observation on, so that one pass sees most of what follows from what
        kinds = ("conv", "features")
        return sorted(self.found.values(), key=lambda hidden: (hidden.width.split(".")[0] not in kinds, order[hidden.name]))

    def _extractor(self, path: str, readers: list[tuple[str, nn.Module]], is_read_elsewhere: bool) -> None:
        extractor = find_submodule(self.policy, path)
        if not isinstance(extractor, NatureCNN) or type(extractor).forward is not NatureCNN.forward:
            return
        chain = [*_chain(extractor.cnn, f"{path}.cnn"), *_chain(extractor.linear, f"{path}.linear")]
        for index, link in enumerate(chain[:-1]):
            self._add(*link, f"conv.{index}", [chain[index + 1][:2]])
        features = self._add(*chain[-1], "features", readers)
        features.is_read_elsewhere = features.is_read_elsewhere or is_read_elsewhere

    def _add(
        self,
        path: str,
        layer: nn.Module,
        activation: nn.Module | None,
        width: str,
        readers: list[tuple[str, nn.Module]],
    ) -> Hidden:
        hidden = self.found.setdefault(layer, Hidden(self.names[layer], width, activation or nn.Identity(), []))
        self._add_copy(hidden, layer, [reader for _, reader in readers])
        target = _counterpart(self.policy, path)
        if target is not None:
            counterparts = [_counterpart(self.policy, reader_path) for reader_path, _ in readers]
            self._add_copy(hidden, target, [reader for reader in counterparts if reader is not None])
        return hidden

    @staticmethod
    def _add_copy(hidden: Hidden, layer: nn.Module, readers: list[nn.Module]) -> None:
        copy = next((copy for copy in hidden.copies if copy.layer is layer), None)
        if copy is None:
            copy = Copy(layer)
            hidden.copies.append(copy)
        known = [reader for reader, _ in copy.readers]
        copy.readers += [(reader, _spread(layer, reader)) for reader in readers if reader not in known]


def _spread(layer: nn.Module, reader: nn.Module) -> int:
    if isinstance(reader, nn.Conv2d):
        return reader.kernel_size[0] * reader.kernel_size[1]
    if isinstance(layer, nn.Conv2d):
        assert isinstance(reader, nn.Linear)
        return reader.in_features // layer.out_channels
    return 1


def find_hidden(policy: nn.Module) -> list[Hidden]:
    """
    Find the hidden layers of a policy.

    :param policy: A policy, stock or sparse.
    :return: Its hidden layers whose units can be told apart, inputs first. Features extractors other than ``NatureCNN`` have
        none, and neither have features that an LSTM reads.
    :raises NotImplementedError: For chains with other modules in them, such as CrossQ's batch normalisation, and for networks
        of the user's own classes.
    """
    return _Finder(policy).towers()


def _matrix(layer: nn.Module) -> Matrix:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, th.Tensor)
    mask = layer.weight_mask if isinstance(layer, SparseLayer) else weight != 0
    assert isinstance(mask, th.Tensor)
    own = bias.detach().clone() if isinstance(bias, th.Tensor) else None
    return Matrix(weight.detach().flatten(1).clone(), mask.flatten(1).clone(), own)


class _Pass:
    """One search for dead units; each that is found cuts the positions it had."""

    def __init__(self, hidden: list[Hidden]) -> None:
        self.hidden = hidden
        modules = [
            module for one in hidden for copy in one.copies for module in (copy.layer, *(reader for reader, _ in copy.readers))
        ]
        self.matrices = {module: _matrix(module) for module in dict.fromkeys(modules)}

    def run(self) -> DeadUnits:
        alive = {one.name: th.ones(len(self.matrices[one.copies[0].layer].weight), dtype=th.bool) for one in self.hidden}
        no_inputs, no_outputs = dict.fromkeys(alive, 0), dict.fromkeys(alive, 0)
        changed = True
        while changed:
            changed = False
            for one in self.hidden:
                units = alive[one.name]
                unread = units & ~self._is_read(one) if not one.is_read_elsewhere else th.zeros_like(units)
                constant = units & ~unread & ~self._has_inputs(one)
                if one.is_read_elsewhere:
                    constant = th.zeros_like(units)
                constant &= self._foldable(one, constant)
                for copy in one.copies:
                    self.matrices[copy.layer].mask[unread] = False
                    self._fold(one, copy, constant)
                no_outputs[one.name] += int(unread.sum())
                no_inputs[one.name] += int(constant.sum())
                alive[one.name] = units & ~unread & ~constant
                changed = changed or bool(unread.any() or constant.any())
        return DeadUnits(alive, no_inputs, no_outputs, self.matrices)

    def _block(self, tensor: th.Tensor, n_units: int, spread: int) -> th.Tensor:
        """``[outputs, units, columns per unit]`` view of the columns that read the units."""
        return tensor[:, : n_units * spread].unflatten(1, (n_units, spread))

    def _is_read(self, one: Hidden) -> th.Tensor:
        n_units = len(self.matrices[one.copies[0].layer].weight)
        read = th.zeros(n_units, dtype=th.bool)
        for copy in one.copies:
            for reader, spread in copy.readers:
                read |= self._block(self.matrices[reader].mask, n_units, spread).any(dim=2).any(dim=0).cpu()
        return read

    def _has_inputs(self, one: Hidden) -> th.Tensor:
        return th.stack([self.matrices[copy.layer].mask.any(dim=1).cpu() for copy in one.copies]).any(dim=0)

    def _constants(self, one: Hidden, copy: Copy) -> th.Tensor:
        """Output of every unit that has no inputs."""
        matrix = self.matrices[copy.layer]
        with th.no_grad():
            return one.activation(matrix.bias.clone() if matrix.bias is not None else th.zeros_like(matrix.weight[:, 0]))

    def _foldable(self, one: Hidden, units: th.Tensor) -> th.Tensor:
        """
        Which units' constants can go into the readers' biases exactly: a padding, which is zero and not the constant, or a
        missing bias forbids it, unless the constant is zero.
        """
        foldable = th.ones_like(units)
        for copy in one.copies:
            for reader, _ in copy.readers:
                padded = isinstance(reader, nn.Conv2d) and any(reader.padding)
                if padded or self.matrices[reader].bias is None:
                    foldable &= (self._constants(one, copy) == 0).cpu()
        return foldable

    def _fold(self, one: Hidden, copy: Copy, units: th.Tensor) -> None:
        if not bool(units.any()):
            return
        n_units = len(units)
        constants = self._constants(one, copy)
        where = units.to(constants.device)
        for reader, spread in copy.readers:
            matrix = self.matrices[reader]
            weights = self._block(matrix.weight, n_units, spread)[:, where].double()
            if matrix.bias is not None:
                # In double precision: folded is the exact sum, rounded once
                folded = matrix.bias.double() + (weights.sum(dim=2) * constants[where].double()).sum(dim=1)
                matrix.bias = folded.to(matrix.bias.dtype)
            self._block(matrix.mask, n_units, spread)[:, where] = False


def dead_units(hidden: list[Hidden]) -> DeadUnits:
    """
    Find all units that can be removed without changing what the networks compute, also those that die when others are removed.

    :param hidden: Of :func:`find_hidden`.
    :return: What is alive and what died; nothing of the policy is changed.
    """
    return _Pass(hidden).run()
