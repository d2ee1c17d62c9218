"""One gradient step, between sampling and target updates: what those of all algorithms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_sparse.accelerated.parts import Part, Trained, watched_by_torch, why_no_gradients
from sb3_sparse.accelerated.samples import Sampler
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.engine.choice import requested_engine
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.policies.watched import Watched, is_flat


class Unsupported(Exception):
    """A model that cannot be accelerated; says why."""


def part_of(sequence: nn.Module) -> Part:
    """
    Take a sequence of layers.

    :param sequence: The sequence.
    :return: It, for the kernels.
    :raises Unsupported: If the kernels cannot run it.
    """
    if not isinstance(sequence, SparseSequential):
        raise Unsupported("a network is not a sequence of sparse linear layers, ReLU and Tanh")
    return Part(sequence)


def adam_of(optimizer: Any) -> SurvivorAdam:
    """
    Take an optimizer.

    :param optimizer: The optimizer.
    :return: The same.
    :raises Unsupported: If it is not Adam over survivors.
    """
    if not isinstance(optimizer, SurvivorAdam):
        raise Unsupported(f"an optimizer is {type(optimizer).__name__}, and not the Adam of a policy that names none")
    return optimizer


class Step(ABC):
    """
    Gradient steps of a model.

    :param model: A model with a sparse policy.
    :raises Unsupported: If the model is not one that can be accelerated.
    """

    #: Networks that a pass reads.
    parts: list[Part]
    #: Those with an optimizer of their own, together.
    trained: list[Trained]
    #: What stock ``train()`` logs the means of.
    logged: tuple[str, ...]
    #: Whether a step counts itself in the model's ``_n_updates``, which the delay of TD3's actor goes by.
    counts_itself = False

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        self.model: Any = model
        self.policy = sparse_policy(model)
        if requested_engine(self.policy.sparsity_config.engine) == "torch":
            raise Unsupported("engine='torch' is asked for")
        space = model.observation_space
        if not isinstance(space, spaces.Box) or is_image_space(space):
            raise Unsupported(f"observations are {space}; vectors (a Box) are what the kernels take")
        n_actions = 0 if isinstance(model.action_space, spaces.Discrete) else int(np.prod(model.action_space.shape or ()))
        self.sampler = Sampler(model, n_actions)
        #: Whether nobody but the algorithm changes the networks in this step.
        self.alone = False
        #: Which of the gradient steps of the present ``train()`` the coming one is, from 0 on.
        self.index = 0
        #: Values of the present ``train()`` by what they are logged as.
        self.values: dict[str, list[float]] = {}

    def _watch(self, networks: Sequence[BaseModel]) -> None:
        """Look after the modules that a stock pass goes through and the kernels do not know."""
        extractors: dict[int, Any] = {id(net.features_extractor): net.features_extractor for net in networks}
        for extractor in extractors.values():
            if not is_flat(extractor):
                raise Unsupported(f"features come from a {type(extractor).__name__} that does more than to flatten")
        flattens = [extractor.flatten for extractor in extractors.values()]
        self.watched = Watched([*networks, *extractors.values(), *flattens])

    @staticmethod
    def _require_all(network: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Refuse a network with parameters besides those of some layers: target updates go over them too."""
        known = {id(parameter) for layer in layers for parameter in layer.parameters()}
        if known != {*map(id, network.parameters())}:
            raise Unsupported(f"the {type(network).__name__} has other layers besides those that it came with")

    # --- What an algorithm says ---

    @abstractmethod
    def _has_networks(self) -> bool:
        """Whether the model still has the networks and optimizers that were found."""

    @abstractmethod
    def run(self) -> bool:
        """
        Make a step with the batch that was drawn.

        :return: False, and nothing is done and no random number drawn, if the kernels cannot run it.
        """

    def as_only_one(self) -> AbstractContextManager[None]:
        """While stock ``train()`` makes the coming step alone, as if it made those before it too."""
        return nullcontext()

    def optimizers(self) -> Any:
        """Optimizers whose learning rate stock ``train()`` sets."""
        return [one.optimizer for one in self.trained]

    # --- A call of train() ---

    def begin(self) -> None:
        """Begin a call of ``train()``."""
        self.policy.set_training_mode(True)
        self.values = {f"train/{name}": [] for name in self.logged}

    def note(self, name: str, value: float) -> None:
        """
        Remember a value of the present step.

        :param name: One of those that are logged.
        :param value: The value.
        """
        self.values[f"train/{name}"].append(value)

    def log(self) -> None:
        """Log what stock ``train()`` logs."""
        self.model.logger.record("train/n_updates", self.model._n_updates, exclude="tensorboard")
        for name, values in self.values.items():
            if values:
                # As stock's np.mean, which takes longer over one value than to record it
                self.model.logger.record(name, np.mean(values) if len(values) > 1 else np.float64(values[0]))

    # --- A step ---

    def is_present(self) -> bool:
        """Whether the model still is what it was when this was made."""
        return self.model.policy is self.policy and self._has_networks() and self.watched.is_present()

    def why_not(self) -> str | None:
        """Why the coming step has to be stock's, if it has to."""
        self.alone = not self.policy.sparsifier.updaters
        reason = watched_by_torch() or self.watched.why_not()
        if reason is not None:
            return reason
        for part in self.parts:
            reason = part.why_not()
            if reason is not None:
                return reason
        for one in self.trained:
            reason = one.why_not() or why_no_gradients(one.parts)
            if reason is not None:
                return reason
        return None

    def wants_dense_gradients(self) -> bool:
        """Whether an updater needs a stock step now and then: no reason to say anything."""
        return any(part.part.wants_dense_gradients() for one in self.trained for part in one.parts)

    def is_ready(self, part: Part) -> bool:
        """
        Ask again whether the kernels can run a network, which updaters may have changed within the step.

        :param part: The network.
        :return: Whether they can.
        """
        return self.alone or part.why_not() is None

    def average(self, targets: Sequence[Part], online: Sequence[Part], tau: float) -> None:
        """
        Update target networks.

        :param targets: The target networks.
        :param online: The networks that they follow.
        :param tau: Polyak's coefficient.
        """
        for target, source in zip(targets, online, strict=True):
            native_too = self.is_ready(target) and self.is_ready(source)
            if not native_too or not target.survivors.average(source.survivors, tau):  # type: ignore[union-attr, arg-type]
                polyak_update(source.part.parameters(), target.part.parameters(), tau)  # type: ignore[union-attr]


class ActorCriticStep(Step):
    """What TD3 and SAC share."""

    train_actor: Trained

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        super().__init__(model)
        critic, target = self.model.critic, self.model.critic_target
        if type(critic) is not ContinuousCritic or type(target) is not ContinuousCritic:
            raise Unsupported(f"the critic is a {type(critic).__name__}")
        self.critic, self.critic_target, self.actor = critic, target, self.model.actor
        self._require_all(critic, critic.q_networks)
        self._require_all(target, target.q_networks)
        self.q_networks, self.q_targets = list(critic.q_networks), list(target.q_networks)
        self.critics, self.targets = [part_of(net) for net in self.q_networks], [part_of(net) for net in self.q_targets]
        self.train_critic = Trained(adam_of(critic.optimizer), self.critics)

    def _has_networks(self) -> bool:
        model, critic, target = self.model, self.critic, self.critic_target
        return (
            model.critic is critic
            and model.critic_target is target
            and model.actor is self.actor
            and critic.optimizer is self.train_critic.optimizer
            and self.actor.optimizer is self.train_actor.optimizer
            and [*critic.q_networks] == self.q_networks
            and [*target.q_networks] == self.q_targets
        )
