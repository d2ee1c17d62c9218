"""
Acting on vectors without torch's dispatcher: what stock ``predict`` does between an array of observations and an array of
actions, with a pass that is a single native call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.engine.autograd import run_native
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.nn.layers import SparseLinear
from sb3_sparse.policies.threads import kind_of
from sb3_sparse.policies.watched import Watched, is_flat

#: Dtypes of arrays that torch takes as they are; it refuses those of other sizes and byte orders.
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))


def _is_stock(policy: BasePolicy) -> bool:
    """Whether ``predict`` behind :class:`ActsNatively`, and what it makes of observations and actions, are stock's."""
    kind = type(policy)
    return (
        super(ActsNatively, kind).predict is BasePolicy.predict  # type: ignore[misc]
        and kind.obs_to_tensor is BasePolicy.obs_to_tensor
        and kind.squash_output is BasePolicy.squash_output
        and (policy.squash_output or not isinstance(policy.action_space, spaces.Box))
    )


class Acting:
    """The networks by which a policy acts, as they were seen last. A copy has to find its own."""

    def __init__(self) -> None:
        self._policy: Any = None
        self._actor: Any = None
        self._sequence: SparseSequential | None = None
        self._heads: list[Any] = []
        self._watched: Watched | None = None

    def __reduce__(self) -> Any:
        return Acting, ()

    def _find(self, policy: BasePolicy) -> None:
        """Find the networks; without a sequence, stock ``predict`` acts."""
        actor: Any = getattr(policy, "actor", None) or getattr(policy, "q_net", None)
        self._policy, self._actor, self._sequence, self._heads, self._watched = policy, actor, None, [], None
        space = policy.observation_space
        if not isinstance(space, spaces.Box) or is_image_space(space) or actor is None:
            return
        kind, acts = type(actor), type(policy)._predict
        sequence: Any = None
        if kind is TD3Actor and acts is TD3Policy._predict:
            sequence = actor.mu
        elif kind is QNetwork and acts is DQNPolicy._predict:
            sequence = actor.q_net
        elif kind is SACActor and acts is SACPolicy._predict and not actor.use_sde:
            sequence, self._heads = actor.latent_pi, [actor.mu, actor.log_std]
        extractor = actor.features_extractor
        if not isinstance(sequence, SparseSequential) or not is_flat(extractor) or not _is_stock(policy):
            return
        if any(type(head) is not SparseLinear for head in self._heads):
            return
        self._watched, self._sequence = Watched([policy, actor, extractor, extractor.flatten, *self._heads]), sequence

    def _is_present(self, policy: Any) -> bool:
        actor = self._actor
        modules = policy._modules
        if policy is not self._policy or actor is not (modules.get("actor") or modules.get("q_net")):
            return False
        return self._watched is None or self._watched.is_present()

    def act(self, policy: BasePolicy, observation: Any, deterministic: bool) -> np.ndarray | None:
        """
        Act.

        :param policy: The policy, in evaluation mode.
        :param observation: As for ``predict``.
        :param deterministic: As for ``predict``.
        :return: Actions as ``predict`` gives them; None, and no random number is drawn, if stock ``predict`` has to act.
        """
        if not self._is_present(policy):
            self._find(policy)
        sequence, space = self._sequence, policy.observation_space
        if sequence is None or self._watched is None or type(observation) is not np.ndarray:
            return None
        # Of an empty batch the shape could not be told
        if observation.dtype not in _DTYPES or not observation.size:
            return None
        alone = observation.shape == space.shape
        if not alone and observation.shape[1:] != space.shape:
            return None
        if self._watched.why_not() is not None or any(head.quantizer is not None for head in self._heads):
            return None
        if self._heads and kind_of(self._actor.action_dist) is not SquashedDiagGaussianDistribution:
            return None
        # Numpy would warn of what becomes infinite
        x = th.from_numpy(np.array(observation).reshape(1 if alone else len(observation), -1)).float()
        survivors = sequence.native_survivors(x)
        if survivors is None:
            return None
        with th.no_grad():
            y = run_native(sequence, survivors, x)
            if self._heads:
                y = self._draw(y, deterministic=deterministic)
            elif "q_net" in policy._modules:
                y = y.argmax(dim=1)
        actions = y.numpy().reshape(-1, *(policy.action_space.shape or ()))
        if isinstance(policy.action_space, spaces.Box):
            actions = policy.unscale_action(actions)
        return actions.squeeze(axis=0) if alone else actions

    def _draw(self, latent: th.Tensor, *, deterministic: bool) -> th.Tensor:
        """Actions of SAC's actor; its distribution is the one of this pass, as after a stock pass."""
        mean, log_std = (nn.functional.linear(latent, head.weight, head.bias) for head in self._heads)
        distribution = self._actor.action_dist
        distribution.proba_distribution(mean, log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX))
        return distribution.get_actions(deterministic)


if TYPE_CHECKING:
    _PolicyBase = BasePolicy
else:
    _PolicyBase = object


class ActsNatively(_PolicyBase):
    """Put in front of a sparse policy class whose ``predict`` is that of all policies."""

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, as the stock policy does.

        :param observation: Of one environment or several.
        :param state: Hidden states of recurrent policies.
        :param episode_start: Where they have to be reset.
        :param deterministic: Whether to leave out chance.
        :return: The actions, and the next hidden states.
        """
        acting = self.__dict__.get("_acting")
        if acting is None:
            acting = self.__dict__["_acting"] = Acting()
        self.set_training_mode(False)
        actions = acting.act(self, observation, deterministic)
        return super().predict(observation, state, episode_start, deterministic) if actions is None else (actions, state)
