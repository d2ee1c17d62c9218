"""
Sparse policies for stock Stable-Baselines3 and sb3-contrib: one mixin in front of each stock policy class.

The mixin works after the stock constructor, so networks, optimizers, initial weights and torch's random stream are the
stock policy's; only then are the prunable layers made sparse in place.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable import policies as maskable
from sb3_contrib.common.recurrent import policies as recurrent
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common import policies as actor_critic
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from sb3_sparse.acceleration import adopt_sequences
from sb3_sparse.discovery import ONLINE_OF_TARGET, find_layers, find_optimizers, find_submodule
from sb3_sparse.engine.choice import Choice
from sb3_sparse.layers import SPARSE_CLASSES, SparseLayer
from sb3_sparse.plan import SparsityConfig, make_plan
from sb3_sparse.sparsifier import Sparsifier

if TYPE_CHECKING:
    _PolicyBase = BasePolicy
else:
    _PolicyBase = object


def _constructor_parameters(policy: type[BasePolicy]) -> dict[str, inspect.Parameter]:
    """Parameters of a policy's constructor and, as long as it hands ``**kwargs`` on, of those it extends."""
    collected: dict[str, inspect.Parameter] = {}
    for cls in policy.__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
            variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            own = {parameter.name: parameter for parameter in parameters if parameter.kind not in variadic}
            collected = {**{name: value for name, value in own.items() if name not in collected}, **collected}
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return collected


def _graph_tensors(value: Any) -> Iterator[th.Tensor]:
    """Tensors with a history that a distribution holds."""
    if isinstance(value, th.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _graph_tensors(item)
    elif isinstance(value, (Distribution, th.distributions.Distribution)):
        yield from _graph_tensors(list(vars(value).values()))


def _default_seed() -> int:
    """A seed that follows torch's global generator without drawing from it."""
    return int.from_bytes(hashlib.sha256(th.get_rng_state().numpy().tobytes()).digest()[:8], "little") >> 1


class SparsePolicyMixin(_PolicyBase):
    """
    Put in front of a stock policy class: ``class MySparsePolicy(SparsePolicyMixin, MyPolicy): ...``.

    Takes the arguments of the stock policy and those of :class:`~sb3_sparse.plan.SparsityConfig`.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule
    :param sparsity: See :class:`~sb3_sparse.plan.SparsityConfig`, as for the following.
    :param distribution: How the sparsity is spread over a network's layers.
    :param pattern: Which masks are legal.
    :param dense_layers: Layers that stay dense.
    :param initial_mask: How the first masks are chosen.
    :param mask_seed: Seed of the masks' own generator.
    :param engine: What multiplies.
    :param kwargs: Arguments of the stock policy, by keyword.
    :raises TypeError: For a keyword that neither knows.
    :raises ValueError: For arguments out of range, see :class:`~sb3_sparse.plan.SparsityConfig`, and observation spaces
        that the policy cannot take.
    """

    sparsifier: Sparsifier
    sparsity_config: SparsityConfig

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        sparsity: float | Mapping[str, float] | None = None,
        distribution: str | Mapping[str, Any] | None = None,
        pattern: str = "unstructured",
        dense_layers: str | Sequence[str] = (),
        initial_mask: str = "random",
        mask_seed: int | None = None,
        engine: str = "auto",
        **kwargs: Any,
    ) -> None:
        config = SparsityConfig(sparsity, distribution, pattern, dense_layers, initial_mask, mask_seed, engine)
        choice = Choice(engine)
        self._check_arguments(observation_space, kwargs)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.sparsity_config = config
        # Who names an optimizer means that one
        self._sparsify(config, choice, survivor_steps=choice.possible and not self._names_optimizer(kwargs))

    @classmethod
    def _names_optimizer(cls, kwargs: Mapping[str, Any]) -> bool:
        """Whether somebody wants one optimizer and no other."""
        return "optimizer_class" in kwargs

    @classmethod
    def stock_policy(cls) -> type[BasePolicy]:
        """The dense policy class behind this one."""
        return cls.__mro__[cls.__mro__.index(SparsePolicyMixin) + 1]

    @classmethod
    def _check_arguments(cls, observation_space: spaces.Space, kwargs: Mapping[str, Any]) -> None:
        stock = _constructor_parameters(cls.stock_policy())
        # The first three, spaces and schedule, are the algorithm's to give
        known = (*SparsityConfig.argument_names(), *list(stock)[3:])
        for name in kwargs:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise TypeError(f"unknown policy_kwargs {name!r}{hint}; {cls.__name__} takes: {', '.join(known)}")
        extractor = kwargs.get("features_extractor_class") or stock["features_extractor_class"].default
        if isinstance(observation_space, spaces.Dict) and issubclass(extractor, (FlattenExtractor, NatureCNN)):
            raise ValueError(
                f"You must use `SparseMultiInputPolicy` when working with dict observation space, not {cls.__name__} "
                f"with {extractor.__name__}"
            )
        if not isinstance(observation_space, spaces.Dict) and issubclass(extractor, CombinedExtractor):
            raise ValueError(
                f"{cls.__name__} is for dict observation spaces, got {observation_space}: "
                "use `SparseMlpPolicy`, or `SparseCnnPolicy` for images"
            )

    def _sparsify(self, config: SparsityConfig, choice: Choice, survivor_steps: bool) -> None:
        infos = find_layers(self)
        if not infos:
            raise ValueError(f"{type(self).__name__} has no nn.Linear or nn.Conv2d layer that could be made sparse")
        plan = make_plan(config, infos)
        layers = {info.name: self._sparse_layer(self.get_submodule(info.name)) for info in infos}
        seed = _default_seed() if config.mask_seed is None else config.mask_seed
        targets = self._make_targets_sparse(layers)
        sequences = adopt_sequences(self, choice)
        self.sparsifier = Sparsifier(layers, plan, targets, find_optimizers(self), seed, sequences, survivor_steps)
        self.sparsifier.initialize(config.initial_mask)

    @staticmethod
    def _sparse_layer(layer: nn.Module) -> SparseLayer:
        return layer if isinstance(layer, SparseLayer) else SPARSE_CLASSES[type(layer)].from_dense(layer)

    def _make_targets_sparse(self, layers: Mapping[str, SparseLayer]) -> dict[str, list[SparseLayer]]:
        name_of = {layer: name for name, layer in layers.items()}
        targets: dict[str, list[SparseLayer]] = {}
        for target_prefix, prefix in ONLINE_OF_TARGET.items():
            root, target_root = find_submodule(self, prefix), find_submodule(self, target_prefix)
            if root is None or target_root is None:
                continue
            for path, layer in root.named_modules(remove_duplicate=False):
                if isinstance(layer, SparseLayer):
                    target = self._sparse_layer(target_root.get_submodule(path))
                    # A features extractor that actor and critic share is met twice
                    if not any(target is known for known in targets.setdefault(name_of[layer], [])):
                        targets[name_of[layer]].append(target)
        return targets

    def _layer_paths(self) -> dict[str, str]:
        """Online layer name by every path of a sparse layer in the state dict, online paths before those of targets."""
        name_of: dict[nn.Module, str] = {layer: name for name, layer in self.sparsifier.layers.items()}
        online = {path: name_of[module] for path, module in self.named_modules(remove_duplicate=False) if module in name_of}
        target_of = {target: name for name, targets in self.sparsifier.targets.items() for target in targets}
        return online | {
            path: target_of[module] for path, module in self.named_modules(remove_duplicate=False) if module in target_of
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Load a sparse or dense policy's state dict without ever breaking an invariant. Masks in the file win over
        ``policy_kwargs``; a dense file gets the largest weights that the plan allows as masks.

        :param state_dict: State dict of a policy of the same architecture.
        :param strict: As in ``torch.nn.Module.load_state_dict``.
        :param assign: As in ``torch.nn.Module.load_state_dict``.
        :return: Missing and unexpected keys.
        :raises RuntimeError: For another architecture or masks that this policy's plan forbids; nothing is overwritten then.
        """
        paths = self._layer_paths()
        completed = dict(state_dict)
        self.sparsifier.check_loadable(completed, paths)
        self.sparsifier.complete(completed, paths)
        result = super().load_state_dict(completed, strict=strict, assign=assign)
        self.sparsifier.after_load()
        return result

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.sparsity_config.as_kwargs()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.sparsifier.attach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The action distribution of the last forward pass hangs on to that pass's graph, which torch refuses to copy
        for module in self.modules():
            for tensor in _graph_tensors(module.__dict__.get("action_dist")):
                memo[id(tensor)] = tensor.detach().clone()
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__dict__, memo))
        return copy


# One class per stock class, so that saved models refer to them by name.


class SparseTD3Policy(SparsePolicyMixin, td3.TD3Policy):
    """Sparse ``MlpPolicy`` of TD3 and DDPG."""


class SparseTD3CnnPolicy(SparsePolicyMixin, td3.CnnPolicy):
    """Sparse ``CnnPolicy`` of TD3 and DDPG."""


class SparseTD3MultiInputPolicy(SparsePolicyMixin, td3.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of TD3 and DDPG."""


class SparseSACPolicy(SparsePolicyMixin, sac.SACPolicy):
    """Sparse ``MlpPolicy`` of SAC."""


class SparseSACCnnPolicy(SparsePolicyMixin, sac.CnnPolicy):
    """Sparse ``CnnPolicy`` of SAC."""


class SparseSACMultiInputPolicy(SparsePolicyMixin, sac.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of SAC."""


class SparseDQNPolicy(SparsePolicyMixin, dqn.DQNPolicy):
    """Sparse ``MlpPolicy`` of DQN."""


class SparseDQNCnnPolicy(SparsePolicyMixin, dqn.CnnPolicy):
    """Sparse ``CnnPolicy`` of DQN."""


class SparseDQNMultiInputPolicy(SparsePolicyMixin, dqn.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of DQN."""


class SparseActorCriticPolicy(SparsePolicyMixin, actor_critic.ActorCriticPolicy):
    """Sparse ``MlpPolicy`` of PPO and A2C."""


class SparseActorCriticCnnPolicy(SparsePolicyMixin, actor_critic.ActorCriticCnnPolicy):
    """Sparse ``CnnPolicy`` of PPO and A2C."""


class SparseMultiInputActorCriticPolicy(SparsePolicyMixin, actor_critic.MultiInputActorCriticPolicy):
    """Sparse ``MultiInputPolicy`` of PPO and A2C."""


class SparseTQCPolicy(SparsePolicyMixin, tqc.TQCPolicy):
    """Sparse ``MlpPolicy`` of TQC."""


class SparseTQCCnnPolicy(SparsePolicyMixin, tqc.CnnPolicy):
    """Sparse ``CnnPolicy`` of TQC."""


class SparseTQCMultiInputPolicy(SparsePolicyMixin, tqc.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of TQC."""


class _NamesAdamItself(SparsePolicyMixin):
    """QR-DQN hands every policy that names no optimizer Adam by name."""

    @classmethod
    def _names_optimizer(cls, kwargs: Mapping[str, Any]) -> bool:
        return kwargs.get("optimizer_class", th.optim.Adam) is not th.optim.Adam


class SparseQRDQNPolicy(_NamesAdamItself, qrdqn.QRDQNPolicy):
    """Sparse ``MlpPolicy`` of QR-DQN."""


class SparseQRDQNCnnPolicy(_NamesAdamItself, qrdqn.CnnPolicy):
    """Sparse ``CnnPolicy`` of QR-DQN."""


class SparseQRDQNMultiInputPolicy(_NamesAdamItself, qrdqn.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of QR-DQN."""


class SparseCrossQPolicy(SparsePolicyMixin, CrossQPolicy):
    """Sparse ``MlpPolicy`` of CrossQ."""


class SparseMaskableActorCriticPolicy(SparsePolicyMixin, maskable.MaskableActorCriticPolicy):
    """Sparse ``MlpPolicy`` of MaskablePPO."""


class SparseMaskableActorCriticCnnPolicy(SparsePolicyMixin, maskable.MaskableActorCriticCnnPolicy):
    """Sparse ``CnnPolicy`` of MaskablePPO."""


class SparseMaskableMultiInputActorCriticPolicy(SparsePolicyMixin, maskable.MaskableMultiInputActorCriticPolicy):
    """Sparse ``MultiInputPolicy`` of MaskablePPO."""


class SparseRecurrentActorCriticPolicy(SparsePolicyMixin, recurrent.RecurrentActorCriticPolicy):
    """Sparse ``MlpLstmPolicy`` of RecurrentPPO; its Linear layers are sparse, the LSTM stays dense."""


class SparseRecurrentActorCriticCnnPolicy(SparsePolicyMixin, recurrent.RecurrentActorCriticCnnPolicy):
    """Sparse ``CnnLstmPolicy`` of RecurrentPPO; the LSTM stays dense."""


class SparseRecurrentMultiInputActorCriticPolicy(SparsePolicyMixin, recurrent.RecurrentMultiInputActorCriticPolicy):
    """Sparse ``MultiInputLstmPolicy`` of RecurrentPPO; the LSTM stays dense."""


class UnsupportedTRPOPolicy(actor_critic.ActorCriticPolicy):
    """Refuses TRPO with the reason."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "sb3_sparse does not support TRPO: its line search computes gradients with autograd.grad and writes param.data, "
            "past every hook, so it would judge a dense step and keep a sparse one. Use PPO"
        )


class UnsupportedARSPolicy(BasePolicy):
    """Refuses ARS with the reason."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "sb3_sparse does not support ARS: it perturbs the whole parameter vector and has neither gradients nor an "
            "optimizer, so there is nothing a mask could be kept by"
        )

    def _predict(self, observation: Any, deterministic: bool = False) -> NoReturn:
        raise NotImplementedError


_TD3_POLICIES = (SparseTD3Policy, SparseTD3CnnPolicy, SparseTD3MultiInputPolicy)
_ACTOR_CRITIC_POLICIES = (SparseActorCriticPolicy, SparseActorCriticCnnPolicy, SparseMultiInputActorCriticPolicy)

#: The sparse counterparts of each algorithm's Mlp, Cnn and MultiInput policies.
SPARSE_POLICIES: dict[type[BaseAlgorithm], tuple[type[SparsePolicyMixin], ...]] = {
    TD3: _TD3_POLICIES,
    DDPG: _TD3_POLICIES,
    SAC: (SparseSACPolicy, SparseSACCnnPolicy, SparseSACMultiInputPolicy),
    DQN: (SparseDQNPolicy, SparseDQNCnnPolicy, SparseDQNMultiInputPolicy),
    PPO: _ACTOR_CRITIC_POLICIES,
    A2C: _ACTOR_CRITIC_POLICIES,
    TQC: (SparseTQCPolicy, SparseTQCCnnPolicy, SparseTQCMultiInputPolicy),
    QRDQN: (SparseQRDQNPolicy, SparseQRDQNCnnPolicy, SparseQRDQNMultiInputPolicy),
    CrossQ: (SparseCrossQPolicy,),
    MaskablePPO: (
        SparseMaskableActorCriticPolicy,
        SparseMaskableActorCriticCnnPolicy,
        SparseMaskableMultiInputActorCriticPolicy,
    ),
    RecurrentPPO: (
        SparseRecurrentActorCriticPolicy,
        SparseRecurrentActorCriticCnnPolicy,
        SparseRecurrentMultiInputActorCriticPolicy,
    ),
}
_REFUSED: dict[type[BaseAlgorithm], type[BasePolicy]] = {TRPO: UnsupportedTRPOPolicy, ARS: UnsupportedARSPolicy}


def register_policies() -> None:
    """
    Add ``Sparse<alias>`` to the ``policy_aliases`` of every algorithm, where the stock alias exists. Importing
    ``sb3_sparse`` does it.
    """
    for algorithm, policies in SPARSE_POLICIES.items():
        stock_aliases = {stock: alias for alias, stock in algorithm.policy_aliases.items() if not alias.startswith("Sparse")}
        for policy in policies:
            algorithm.policy_aliases[f"Sparse{stock_aliases[policy.stock_policy()]}"] = policy
    for algorithm, refusal in _REFUSED.items():
        for alias in [alias for alias in algorithm.policy_aliases if not alias.startswith("Sparse")]:
            algorithm.policy_aliases[f"Sparse{alias}"] = refusal


def sparse_policy(model: BaseAlgorithm) -> SparsePolicyMixin:
    """
    The sparse policy of a model, also behind ``torch.compile``.

    :param model: A model.
    :return: Its policy.
    :raises TypeError: If the policy is not sparse.
    """
    policy = getattr(model.policy, "_orig_mod", model.policy)
    if not isinstance(policy, SparsePolicyMixin):
        raise TypeError(
            f"the model's policy is {type(policy).__name__}, which is not sparse: create the model with a sparse policy, "
            f'e.g. {type(model).__name__}("SparseMlpPolicy", env, policy_kwargs=dict(sparsity=0.9)), or prune this one with '
            "sb3_sparse.sparsify(model, sparsity=0.9)"
        )
    return policy
