"""From many zeros to smaller matrices: dead units are taken out, what is computed stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_sparse.analysis.dead_units import DeadUnits, Hidden, dead_units, find_hidden
from sb3_sparse.conversion.saved import UPDATER_PREFIX, Saved
from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.masks.plan import select_layers
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.policies.structure import find_optimizers

Model = TypeVar("Model", bound=BaseAlgorithm)


class NarrowNatureCNN(NatureCNN):
    """
    ``NatureCNN`` with another number of channels.

    :param observation_space: Images.
    :param features_dim: Number of features.
    :param normalized_image: As in ``NatureCNN``.
    :param channels: Channels of the three convolutions.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 512,
        normalized_image: bool = False,
        channels: tuple[int, int, int] = (32, 64, 64),
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image)
        first, second, third = channels
        convolutions = [module for module in self.cnn if isinstance(module, nn.Conv2d)]
        linear = self.linear[0]
        assert isinstance(linear, nn.Linear)
        pixels = linear.in_features // convolutions[-1].out_channels
        n_inputs = convolutions[0].in_channels
        self.cnn = nn.Sequential(
            nn.Conv2d(n_inputs, first, kernel_size=8, stride=4, padding=0),
            nn.ReLU(),
            nn.Conv2d(first, second, kernel_size=4, stride=2, padding=0),
            nn.ReLU(),
            nn.Conv2d(second, third, kernel_size=3, stride=1, padding=0),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(nn.Linear(third * pixels, features_dim), nn.ReLU())


@dataclass
class _Cut:
    """
    How a layer's tensors are cut: indices to keep, -1 for a unit that is added with nothing but zeros. None: all.

    :param rows: Of the outputs.
    :param columns: Of the inputs, the weight seen as a matrix.
    """

    rows: th.Tensor | None = None
    columns: th.Tensor | None = None

    def weight(self, tensor: th.Tensor) -> th.Tensor:
        """A tensor of the weight's shape, cut."""
        return _take(_take(tensor.flatten(1), self.rows, 0), self.columns, 1).unflatten(1, (-1, *tensor.shape[2:]))

    def bias(self, tensor: th.Tensor) -> th.Tensor:
        """A tensor of the bias's shape, cut."""
        return _take(tensor, self.rows, 0)


def _take(tensor: th.Tensor, indices: th.Tensor | None, dim: int) -> th.Tensor:
    if indices is None:
        return tensor
    indices = indices.to(tensor.device)
    taken = tensor.index_select(dim, indices.clamp_min(0))
    added = (indices < 0).view(-1, *[1] * (tensor.dim() - dim - 1))
    return taken.masked_fill(added, 0)


def _widths(hidden: list[Hidden], dead: DeadUnits) -> dict[str, int]:
    """New number of units by the architecture's names: the most that any layer with that name needs, at least one."""
    widths: dict[str, int] = {}
    for one in hidden:
        widths[one.width] = max(widths.get(one.width, 1), int(dead.alive[one.name].sum()))
    return widths


def _cuts(hidden: list[Hidden], dead: DeadUnits, widths: Mapping[str, int]) -> dict[nn.Module, _Cut]:
    cuts = {module: _Cut() for module in dead.matrices}
    for one in hidden:
        kept = dead.alive[one.name].nonzero().flatten()
        units = th.cat([kept, th.full((widths[one.width] - len(kept),), -1)])
        n_units = len(dead.alive[one.name])
        for copy in one.copies:
            cuts[copy.layer].rows = units
            for reader, spread in copy.readers:
                columns = units[:, None] * spread + th.arange(spread)
                columns[units < 0] = -1
                # What else the reader reads, a critic's actions, comes behind
                others = th.arange(n_units * spread, dead.matrices[reader].weight.shape[1])
                cuts[reader].columns = th.cat([columns.flatten(), others])
    return cuts


def _architecture(policy: nn.Module, policy_kwargs: Mapping[str, Any], widths: Mapping[str, int]) -> dict[str, Any]:
    """The stock ``policy_kwargs`` of the smaller networks."""
    towers: dict[str, list[int]] = {}
    for name in sorted(widths):
        tower, _, index = name.partition(".")
        if tower not in ("conv", "features"):
            towers.setdefault(tower, []).insert(int(index), widths[name])
    kwargs: dict[str, Any] = {}
    if towers:
        second = "vf" if hasattr(policy, "mlp_extractor") else "qf"
        # A tower without hidden layers has no widths
        kwargs["net_arch"] = towers["net"] if "net" in towers else {key: towers.get(key, []) for key in ("pi", second)}
    if "features" in widths:
        extractor = dict(policy_kwargs.get("features_extractor_kwargs") or {})
        channels = tuple(widths[f"conv.{index}"] for index in range(3))
        if channels != (32, 64, 64) or "channels" in extractor:
            kwargs["features_extractor_class"] = NarrowNatureCNN
            extractor["channels"] = channels
            # Stock DQN and PPO have no hidden layers behind NatureCNN unless told so, but have them behind any other extractor
            if not towers:
                kwargs["net_arch"] = []
        kwargs["features_extractor_kwargs"] = {**extractor, "features_dim": widths["features"]}
    return kwargs


def _cut_policy(policy: nn.Module, state: dict[str, Any], dead: DeadUnits, cuts: Mapping[nn.Module, _Cut]) -> None:
    for path, module in policy.named_modules(remove_duplicate=False):
        if module in cuts:
            assert isinstance(module.weight, th.Tensor)
            cut, matrix = cuts[module], dead.matrices[module]
            state[f"{path}.weight"] = cut.weight(matrix.weight.view(module.weight.shape))
            if matrix.bias is not None:
                state[f"{path}.bias"] = cut.bias(matrix.bias)
            if isinstance(module, SparseLayer):
                state[f"{path}.weight_mask"] = cut.weight(matrix.mask.view(module.weight.shape))


def _cut_optimizers(policy: nn.Module, params: dict[str, Any], cuts: Mapping[nn.Module, _Cut]) -> None:
    cut_of = {}
    for module, cut in cuts.items():
        cut_of[module.weight] = cut.weight
        if module.bias is not None:
            cut_of[module.bias] = cut.bias
    for name, optimizer in find_optimizers(policy).items():
        states = params[f"{name}.optimizer"]["state"]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            if index in states and parameter in cut_of:
                states[index] = {
                    key: cut_of[parameter](value) if isinstance(value, th.Tensor) and value.shape == parameter.shape else value
                    for key, value in states[index].items()
                }


def _sparse_kwargs(policy: SparsePolicyMixin, state: Mapping[str, Any]) -> dict[str, Any]:
    """What says of the smaller policy how sparse each of its layers is. Groups and blocks have been torn apart."""
    distribution = {}
    for name in policy.sparsifier.layers:
        mask = state[f"{name}.weight_mask"]
        if not bool(mask.all()):
            # A layer that lost everything cannot be asked for; its mask says so
            distribution[name] = 1 - max(int(mask.sum()), 1) / mask.numel()
    config = policy.sparsity_config
    infos = [plan.info for plan in policy.sparsifier.plan.values()]
    named = select_layers(infos, config.dense_layers, "dense_layers")
    # A layer that was filled up with zeros is dense no more
    dense = [name for name in policy.sparsifier.layers if name in named and name not in distribution]
    left = replace(
        config,
        sparsity=None if distribution else 0.0,
        distribution=distribution or None,
        pattern="unstructured",
        dense_layers=dense or (),
    )
    return {name: value for name, value in left.as_kwargs().items() if value != getattr(SparsityConfig(), name)}


def shrink(model: Model) -> Model:
    """
    The smaller equivalent of a model: every unit of a hidden layer that has no inputs (its constant output goes into the
    biases of the next layer) or no outputs is removed, until none is left. Actions and values stay the same, to the rounding
    of sums that are added up in another order. (Those of a quantized model change by as much as its scales do.)

    Layers shrink to the smallest widths that the policy's ``net_arch`` can express: twin critics get the greater of their
    widths, filled up with zeros. Convolutions of ``NatureCNN`` shrink too (the extractor becomes :class:`NarrowNatureCNN`);
    other features extractors, and features that an LSTM reads, stay as they are. The optimizers' moments are cut alike, so
    training can go on; what updaters remember is dropped, and so is a pattern other than unstructured, whose groups or blocks
    are torn apart.

    :param model: A model with a sparse policy, or with a stock policy that has exact zeros. Not changed.
    :return: A new model with the same kind of policy on the same environment; its replay or rollout buffer is empty, as after
        ``load``. ``to_stock`` makes it ordinary.
    :raises NotImplementedError: If its networks are no plain chains, such as CrossQ's with batch normalisation.
    """
    policy = policy_of(model)
    hidden = find_hidden(policy)
    dead = dead_units(hidden)
    saved = Saved.of(model)
    if dead.n_dead:
        widths = _widths(hidden, dead)
        cuts = _cuts(hidden, dead, widths)
        _cut_policy(policy, saved.params["policy"], dead, cuts)
        _cut_optimizers(policy, saved.params, cuts)
        saved.data["policy_kwargs"] = {
            **saved.data["policy_kwargs"],
            **_architecture(policy, saved.data["policy_kwargs"], widths),
        }
        if isinstance(policy, SparsePolicyMixin):
            saved.drop(masks=False, prefix=UPDATER_PREFIX)
            saved.use_policy(type(policy), _sparse_kwargs(policy, saved.params["policy"]))
    return saved.load_beside(model)
