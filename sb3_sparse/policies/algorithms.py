"""Sparse policies for Stable-Baselines3 and sb3-contrib: one class per stock class, and which algorithm takes which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch as th
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable import policies as maskable
from sb3_contrib.common.recurrent import policies as recurrent
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common import policies as actor_critic
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3

from sb3_sparse.policies.acting import ActsNatively
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of

# One class per stock class, so that saved models refer to them by name.


class SparseTD3Policy(ActsNatively, SparsePolicyMixin, td3.TD3Policy):
    """Sparse ``MlpPolicy`` of TD3 and DDPG."""


class SparseTD3CnnPolicy(SparsePolicyMixin, td3.CnnPolicy):
    """Sparse ``CnnPolicy`` of TD3 and DDPG."""


class SparseTD3MultiInputPolicy(SparsePolicyMixin, td3.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of TD3 and DDPG."""


class SparseSACPolicy(ActsNatively, SparsePolicyMixin, sac.SACPolicy):
    """Sparse ``MlpPolicy`` of SAC."""


class SparseSACCnnPolicy(SparsePolicyMixin, sac.CnnPolicy):
    """Sparse ``CnnPolicy`` of SAC."""


class SparseSACMultiInputPolicy(SparsePolicyMixin, sac.MultiInputPolicy):
    """Sparse ``MultiInputPolicy`` of SAC."""


class SparseDQNPolicy(ActsNatively, SparsePolicyMixin, dqn.DQNPolicy):
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


def sparse_counterpart(model: BaseAlgorithm) -> type[SparsePolicyMixin]:
    """
    Find the sparse policy class for a model.

    :param model: A model, sparse or stock.
    :return: The sparse policy class for it; its own if that is sparse.
    :raises ValueError: For an algorithm that is not supported.
    :raises TypeError: For a policy class of the user's own, saying how to make it sparse.
    """
    policy = type(policy_of(model))
    if issubclass(policy, SparsePolicyMixin):
        return policy
    policies = next((SPARSE_POLICIES[cls] for cls in type(model).__mro__ if cls in SPARSE_POLICIES), None)
    if policies is None:
        supported = ", ".join(algorithm.__name__ for algorithm in SPARSE_POLICIES)
        raise ValueError(f"{type(model).__name__} is not supported; supported are: {supported}")
    for sparse in policies:
        if sparse.stock_policy() is policy:
            return sparse
    raise TypeError(
        f"the model's policy {policy.__name__} has no sparse counterpart. Make one, in a module that can be imported,\n"
        f"    class Sparse{policy.__name__}(sb3_sparse.SparsePolicyMixin, {policy.__name__}):\n        pass\n"
        f"and give it as `policy_class`=Sparse{policy.__name__}"
    )
