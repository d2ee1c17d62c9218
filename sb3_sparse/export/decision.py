"""From a model to its decision as one graph, which every format is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.export.network import Flow, Writer, as_float32
from sb3_sparse.export.normalization import statistics
from sb3_sparse.export.spaces import action_space, observation_spaces
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.operations import (
    Above,
    ArgMax,
    AsFloat,
    AverageQuantiles,
    Bound,
    Constant,
    Divide,
    Exponential,
    Normalize,
    OneHot,
    Unscale,
)
from sb3_sparse_runtime.spaces import Space

SUPPORTED = "TD3, DDPG, SAC, TQC, DQN, QR-DQN, PPO, A2C and MaskablePPO"


class _Decision:
    """
    One model on its way to a graph.

    :param policy: Its policy.
    :param normalize: Statistics of its observations, or None.
    :param distribution: Whether mean and standard deviation are wanted too.
    """

    def __init__(self, policy: BasePolicy, normalize: VecNormalize | None, *, distribution: bool) -> None:
        self.policy: Any = policy
        self.normalize, self.distribution = normalize, distribution
        self.observation = observation_spaces(policy.observation_space)
        self.action = action_space(policy.action_space)
        self.inputs = {"observation": self.observation} if isinstance(self.observation, Space) else dict(self.observation)
        self.writer = Writer(list(self.inputs), _patterns(policy))
        self.outputs: dict[str, str] = {}

    def graph(self) -> Graph:
        policy = self.policy
        if isinstance(policy, RecurrentActorCriticPolicy):
            raise ValueError(
                f"the policy is recurrent ({type(policy).__name__}), which cannot be exported: its LSTM has a state"
            )
        if isinstance(policy, TD3Policy):
            self._off_policy(policy.actor, "actor.mu", policy.actor.mu)
        elif isinstance(policy, (SACPolicy, TQCPolicy)):
            self._off_policy(policy.actor, "actor.latent_pi", policy.actor.latent_pi)
        elif isinstance(policy, DQNPolicy):
            self._values(policy.q_net, "q_net", policy.q_net.q_net)
        elif isinstance(policy, QRDQNPolicy):
            self._values(policy.quantile_net, "quantile_net", policy.quantile_net.quantile_net)
        elif isinstance(policy, (ActorCriticPolicy, MaskableActorCriticPolicy)):
            self._on_policy()
        else:
            raise ValueError(
                f"the policy is a {type(policy).__name__}, which cannot be exported; supported are those of {SUPPORTED}"
            )
        return Graph(self.observation, self.action, tuple(self.writer.operations), self.outputs)

    # --- Observations ---

    def _features(self, owner: Any, extractor: nn.Module, path: str) -> Flow:
        """``owner``: the module whose ``extract_features`` this is."""
        features = {name: Flow(self._preprocessed(name, space, owner.normalize_images)) for name, space in self.inputs.items()}
        if type(extractor) is FlattenExtractor:
            return self._flat("observation", features["observation"], path)
        if isinstance(extractor, NatureCNN) and type(extractor).forward is NatureCNN.forward:
            return self._nature_cnn(extractor, features["observation"], path)
        if type(extractor) is CombinedExtractor:
            parts = []
            for key, part in extractor.extractors.items():
                name = f"{path}.extractors.{key}"
                if isinstance(part, NatureCNN):
                    parts.append(self._nature_cnn(part, features[key], name))
                else:
                    parts.append(self._flat(key, features[key], name))
            return self.writer.concatenate(parts)
        raise ValueError(
            f"the features extractor is a {type(extractor).__name__}, which cannot be exported; supported are "
            "FlattenExtractor, NatureCNN and CombinedExtractor"
        )

    def _flat(self, name: str, flow: Flow, path: str) -> Flow:
        space = self.inputs[name]
        is_vector = bool(space.sizes) or len(space.shape) == 1
        return flow if is_vector else self.writer.module(nn.Flatten(), flow, path)

    def _nature_cnn(self, extractor: Any, flow: Flow, path: str) -> Flow:
        flow = self.writer.module(extractor.cnn, flow, f"{path}.cnn")
        return self.writer.module(extractor.linear, flow, f"{path}.linear")

    def _preprocessed(self, name: str, space: Space, normalize_images: bool) -> str:
        add = self.writer.add
        key = name if isinstance(self.observation, Mapping) else None
        found = statistics(self.normalize, key, space) if self.normalize is not None else None
        if space.sizes:
            if found is not None:
                raise ValueError(f"observations of the space {space.kind!r} are normalised, which cannot be exported")
            return add(OneHot, name, sizes=space.sizes)
        value = add(AsFloat, name) if found is None else add(Normalize, name, **found)
        return add(Divide, value, divisor=255.0) if space.image and normalize_images else value

    # --- Networks ---

    def _off_policy(self, actor: Any, path: str, network: nn.Module) -> None:
        flow = self.writer.module(network, self._features(actor, actor.features_extractor, "actor.features_extractor"), path)
        if path == "actor.latent_pi":
            latent, flow = flow, self.writer.module(actor.mu, flow, "actor.mu")
            if self.distribution:
                self._check_distribution(actor.use_sde)
                log_std = self.writer.value(self.writer.module(actor.log_std, latent, "actor.log_std"))
                std = self.writer.add(Exponential, log_std, low=float(LOG_STD_MIN), high=float(LOG_STD_MAX))
                self.outputs |= {"mean": self.writer.value(flow), "std": std}
            flow = self.writer.module(nn.Tanh(), flow, "tanh")
        elif self.distribution:
            raise ValueError("`distribution` cannot be exported: the policy is deterministic, it has no standard deviation")
        self._box(self.writer.value(flow))

    def _values(self, owner: Any, path: str, network: nn.Module) -> None:
        if self.distribution:
            raise ValueError(
                "`distribution` cannot be exported: the policy chooses the greatest value, it has no distribution"
            )
        features = self._features(owner, owner.features_extractor, f"{path}.features_extractor")
        values = self.writer.value(self.writer.module(network, features, f"{path}.{path}"))
        if path == "quantile_net":
            values = self.writer.add(AverageQuantiles, values, n_quantiles=int(owner.n_quantiles))
        self.outputs["action"] = self.writer.add(ArgMax, values, sizes=self.action.sizes)

    def _on_policy(self) -> None:
        policy = self.policy
        features = self._features(policy, policy.pi_features_extractor, "pi_features_extractor")
        latent = self.writer.module(policy.mlp_extractor.policy_net, features, "mlp_extractor.policy_net")
        flow = self.writer.module(policy.action_net, latent, "action_net")
        if self.action.kind == "box":
            if self.distribution:
                self._check_distribution(isinstance(policy.action_dist, StateDependentNoiseDistribution))
                mean = self.writer.value(flow)
                std = np.exp(as_float32(policy.log_std, "log_std").astype(np.float64)).astype(np.float32)
                self.outputs |= {"mean": mean, "std": self.writer.add(Constant, mean, values=std)}
            if policy.squash_output:
                flow = self.writer.module(nn.Tanh(), flow, "tanh")
            self._box(self.writer.value(flow))
            return
        if self.distribution:
            raise ValueError("`distribution` cannot be exported: only a Gaussian has mean and standard deviation")
        logits = self.writer.value(flow)
        maskable = isinstance(policy, MaskableActorCriticPolicy)
        if self.action.kind == "multi_binary" and not maskable:
            self.outputs["action"] = self.writer.add(Above, logits, threshold=bernoulli_threshold())
            return
        # Bits that may be forbidden are choices between two
        sizes = self.action.sizes or (2,) * self.action.size
        self.outputs["action"] = self.writer.add(ArgMax, logits, sizes=sizes, maskable=maskable)

    @staticmethod
    def _check_distribution(use_sde: bool) -> None:
        if use_sde:
            raise ValueError("`distribution` cannot be exported with gSDE: its noise depends on a matrix that is drawn anew")

    def _box(self, value: str) -> None:
        space = self.policy.action_space
        assert isinstance(space, spaces.Box)
        low, high = (bound.astype(np.float32).ravel() for bound in (space.low, space.high))
        kind = Unscale if self.policy.squash_output else Bound
        self.outputs["action"] = self.writer.add(kind, value, low=low, high=high)


def _patterns(policy: BasePolicy) -> dict[nn.Module, str]:
    if not isinstance(policy, SparsePolicyMixin):
        return {}
    sparsifier = policy.sparsifier
    return {
        layer: sparsifier.plan[name].pattern.spec
        for name, layer in sparsifier.layers.items()
        if isinstance(layer, SparseLayer)
    }


def bernoulli_threshold() -> float:
    """
    Find where torch rounds a probability up to 1.

    :return: The greatest float32 logit whose probability torch rounds to 0: halves go to even.
    """
    low, high = np.float32(0), np.float32(1)
    while (middle := np.float32((low + high) / 2)) not in (low, high):
        is_one = bool(th.round(th.sigmoid(th.full((), float(middle)))) == 1)
        low, high = (low, middle) if is_one else (middle, high)
    return float(low)


def decision_of(model: BaseAlgorithm, *, normalize: VecNormalize | None = None, distribution: bool = False) -> Graph:
    """
    Everything between an observation of the environment and the action that ``predict(observation, deterministic=True)``
    answers, as a list of operations.

    :param model: A model with a sparse or a stock policy.
    :param normalize: Statistics that its observations are normalised with before it sees them.
    :param distribution: Whether the graph answers mean and standard deviation of the Gaussian too.
    :return: The graph. It shares nothing with the model.
    :raises ValueError: For a policy, space, layer or activation function that cannot be exported, naming it.
    """
    return _Decision(policy_of(model), normalize, distribution=distribution).graph()
