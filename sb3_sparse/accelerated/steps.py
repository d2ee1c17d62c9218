"""One gradient step of each algorithm: what stock ``train()`` does between sampling and target updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.dqn.policies import QNetwork
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.td3.policies import Actor as TD3Actor
from torch import nn

from sb3_sparse.accelerated.parts import Part, Trained, Watched, reading, watched_by_torch, why_no_gradients
from sb3_sparse.accelerated.samples import Sampler
from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SeparateLayers, SurvivorAdam
from sb3_sparse.engine.sequence import SparseSequential


class Unsupported(Exception):
    """A model that cannot be accelerated; says why."""


def _part(sequence: nn.Module) -> Part:
    if not isinstance(sequence, SparseSequential):
        raise Unsupported("a network is not a sequence of sparse linear layers, ReLU and Tanh")
    return Part(sequence)


def _adam(optimizer: Any) -> SurvivorAdam:
    if not isinstance(optimizer, SurvivorAdam):
        raise Unsupported(f"an optimizer is {type(optimizer).__name__}, not the policy's own Adam")
    return optimizer


class Step(ABC):
    """
    Gradient steps of a model.

    :param model: A model whose policy is sparse and which has not been changed since it was made.
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
        space = model.observation_space
        if not isinstance(space, spaces.Box) or is_image_space(space):
            raise Unsupported(f"observations are {type(space).__name__}; vectors (a Box) are what the kernels take")
        self.policy = model.policy
        self._find()
        self.watched = Watched(self._modules())
        for module in self._modules():
            if isinstance(module, nn.Module) and hasattr(module, "features_extractor"):
                if type(module.features_extractor) is not FlattenExtractor:
                    raise Unsupported(f"features come from a {type(module.features_extractor).__name__}")
        self.sampler = Sampler(model, self._n_actions())
        self._modes = [module.__dict__ for module in self.policy.modules()]
        #: Whether nobody but the algorithm changes the networks in this step.
        self.alone = False
        #: Values of the present ``train()`` by what they are logged as.
        self.values: dict[str, list[float]] = {}
        self.begin()

    # --- What an algorithm says ---

    @abstractmethod
    def _find(self) -> None:
        """Find the model's networks."""

    @abstractmethod
    def _modules(self) -> list[nn.Module]:
        """Modules that a stock pass goes through, but for the sequences."""

    @abstractmethod
    def _is_present(self) -> bool:
        """Whether the model still has the networks and optimizers that were found."""

    @abstractmethod
    def _run(self) -> bool:
        """One step with the batch that was drawn; False, and nothing is done, if the kernels cannot run it."""

    def _n_actions(self) -> int:
        return int(np.prod(self.model.action_space.shape))

    def optimizers(self) -> Any:
        """Optimizers whose learning rate stock ``train()`` sets."""
        return [one.optimizer for one in self.trained]

    # --- A call of train() ---

    def begin(self) -> None:
        """Begin a call of ``train()``."""
        # What set_training_mode(True) comes to, module by module in less time; others than these are not in the networks
        for attributes in self._modes:
            attributes["training"] = True
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
                self.model.logger.record(name, np.mean(values) if len(values) > 1 else np.float64(values[0]))

    # --- A step ---

    def is_present(self) -> bool:
        """Whether the model still is what it was when this was made."""
        return self.model.policy is self.policy and self._is_present()

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
        return any(part.wants_dense_gradients() for one in self.trained for part in one.parts)

    def draw(self, batch_size: int) -> bool:
        """
        Draw a batch.

        :param batch_size: Number of samples.
        :return: Whether the kernels can take it.
        """
        return self.sampler.draw(batch_size)

    def run(self) -> bool:
        """
        Make a step with the batch that was drawn.

        :return: False, and nothing is done and no random number drawn, if the kernels cannot run it.
        """
        return self._run()

    def _is_ready(self, part: Part) -> bool:
        """Whether the kernels can still run a network, which updaters may have changed within the step."""
        return self.alone or part.why_not() is None

    def _average(self, targets: list[Part], online: list[Part], tau: float) -> None:
        for target, source in zip(targets, online, strict=True):
            native_too = self._is_ready(target) and self._is_ready(source)
            if not native_too or not target.survivors.average(source.survivors, tau):  # type: ignore[union-attr, arg-type]
                polyak_update(source.part.parameters(), target.part.parameters(), tau)  # type: ignore[union-attr]


class _ActorCriticStep(Step):
    """What TD3 and SAC share."""

    def _find_critics(self) -> None:
        model = self.model
        critic, target = model.critic, model.critic_target
        if type(critic) is not ContinuousCritic or type(target) is not ContinuousCritic:
            raise Unsupported(f"the critic is a {type(critic).__name__}")
        self.critic, self.critic_target, self.actor = critic, target, model.actor
        self.q_networks, self.q_targets = list(critic.q_networks), list(target.q_networks)
        self.critics, self.targets = [_part(net) for net in self.q_networks], [_part(net) for net in self.q_targets]
        self.train_critic = Trained(_adam(critic.optimizer), self.critics)

    def _critics_are_present(self) -> bool:
        model, critic, target = self.model, self.critic, self.critic_target
        return (
            model.critic is critic
            and model.critic_target is target
            and model.actor is self.actor
            and critic.optimizer is self.train_critic.optimizer
            and all(new is old for new, old in zip(critic.q_networks, self.q_networks, strict=True))
            and all(new is old for new, old in zip(target.q_networks, self.q_targets, strict=True))
        )


class TD3Step(_ActorCriticStep):
    """:class:`Step` of TD3 and DDPG."""

    logged = ("actor_loss", "critic_loss")
    counts_itself = True

    def _find(self) -> None:
        model = self.model
        if type(model.actor) is not TD3Actor or type(model.actor_target) is not TD3Actor:
            raise Unsupported(f"the actor is a {type(model.actor).__name__}")
        if model.critic_batch_norm_stats or model.actor_batch_norm_stats:
            raise Unsupported("networks have batch normalisation")
        self._find_critics()
        self.actor_target = model.actor_target
        self.mu, self.mu_target = model.actor.mu, model.actor_target.mu
        self.act, self.act_target = _part(self.mu), _part(self.mu_target)
        self.train_actor = Trained(_adam(model.actor.optimizer), [self.act])
        self.trained = [self.train_actor, self.train_critic]
        self.parts = [self.act_target, *self.targets, *self.critics, self.act]

    def _modules(self) -> list[nn.Module]:
        networks = [self.actor, self.actor_target, self.critic, self.critic_target]
        return [*networks, *{id(net.features_extractor): net.features_extractor for net in networks}.values()]

    def _is_present(self) -> bool:
        return (
            self._critics_are_present()
            and self.model.actor_target is self.actor_target
            and self.actor.optimizer is self.train_actor.optimizer
            and self.actor.mu is self.mu
            and self.actor_target.mu is self.mu_target
        )

    def _run(self) -> bool:
        model, sampler, n_threads = self.model, self.sampler, th.get_num_threads()
        with reading(self.parts) as clean:
            if not clean:
                return False
            model._n_updates += 1
            noise = th.empty(sampler.n_samples, sampler.n_actions).normal_(0, model.target_policy_noise)
            loss, deltas = native.module.td3_critics(
                sampler.batch,
                self.act_target.network,
                [part.network for part in self.targets],
                [part.network for part in self.critics],
                noise.data_ptr(),
                model.target_noise_clip,
                n_threads,
            )
        self.note("critic_loss", loss)
        self.train_critic.backward(deltas)
        self.train_critic.optimizer.step()
        if model._n_updates % model.policy_delay == 0:
            self.note("actor_loss", self._actor_loss(n_threads))
            self.train_actor.optimizer.step()
            self._average(self.targets, self.critics, model.tau)
            self._average([self.act_target], [self.act], model.tau)
        return True

    def _actor_loss(self, n_threads: int) -> float:
        """The actor's loss; its gradients are left behind."""
        # The critics' step may have brought other masks
        judge = self.critics[0]
        if self._is_ready(judge):
            with reading([self.act, judge]) as clean:
                if clean:
                    loss, (acted, judged) = native.module.td3_actor(self.sampler.batch, self.act.network, judge.network, n_threads)
            if clean:
                self.train_actor.backward([acted])
                judge.waits_for(judged)
                return loss
        observations = self.sampler.samples().observations
        actor_loss = -self.critic.q1_forward(observations, self.actor(observations)).mean()
        self.train_actor.optimizer.zero_grad()
        actor_loss.backward()
        return actor_loss.item()



class SACStep(_ActorCriticStep):
    """:class:`Step` of SAC."""

    logged = ("ent_coef", "actor_loss", "critic_loss", "ent_coef_loss")

    def _find(self) -> None:
        model = self.model
        if type(model.actor) is not SACActor:
            raise Unsupported(f"the actor is a {type(model.actor).__name__}")
        if model.use_sde:
            raise Unsupported("exploration depends on the state (use_sde)")
        if not isinstance(model.actor.action_dist, SquashedDiagGaussianDistribution):
            raise Unsupported(f"actions come from a {type(model.actor.action_dist).__name__}")
        if model.batch_norm_stats:
            raise Unsupported("networks have batch normalisation")
        self._find_critics()
        actor, optimizer = model.actor, _adam(model.actor.optimizer)
        self.latent_pi, self.heads = actor.latent_pi, (actor.mu, actor.log_std)
        side_by_side = [part for part in optimizer.parts if isinstance(part, SeparateLayers)]
        if len(side_by_side) != 1 or tuple(side_by_side[0].layers) != self.heads:
            raise Unsupported("the actor's heads are not two sparse layers")
        self.body, self.of_heads = _part(self.latent_pi), Part(side_by_side[0])
        self.train_actor = Trained(optimizer, [self.body, self.of_heads])
        self.trained = [self.train_actor, self.train_critic]
        self.parts = [self.body, self.of_heads, *self.targets, *self.critics]

    def _modules(self) -> list[nn.Module]:
        networks = [self.actor, self.critic, self.critic_target]
        return [*networks, *{id(net.features_extractor): net.features_extractor for net in networks}.values()]

    def _is_present(self) -> bool:
        actor = self.actor
        return (
            self._critics_are_present()
            and actor.optimizer is self.train_actor.optimizer
            and actor.latent_pi is self.latent_pi
            and (actor.mu, actor.log_std) == self.heads
            and self.of_heads.part in actor.optimizer.parts
        )

    def optimizers(self) -> Any:
        found = super().optimizers()
        return found if self.model.ent_coef_optimizer is None else [*found, self.model.ent_coef_optimizer]

    def why_not(self) -> str | None:
        variable = self.model.log_ent_coef
        if variable is not None and (variable._backward_hooks or variable._post_accumulate_grad_hooks or not variable.is_cpu):
            return "the entropy coefficient has hooks"
        return super().why_not()

    def _run(self) -> bool:
        model, sampler, n_threads = self.model, self.sampler, th.get_num_threads()
        with reading(self.parts) as clean:
            if not clean:
                return False
            noise = th.empty(sampler.n_samples, sampler.n_actions).normal_()
            body, heads = self.body.network, self.of_heads.network
            log_prob, drawn = native.module.sac_draw(sampler.batch, body, heads, noise.data_ptr(), n_threads)
            coefficient = self._update_coefficient(log_prob)
            next_noise = th.empty(sampler.n_samples, sampler.n_actions).normal_()
            loss, deltas = native.module.sac_critics(
                sampler.batch,
                body,
                heads,
                [part.network for part in self.targets],
                [part.network for part in self.critics],
                next_noise.data_ptr(),
                coefficient,
                n_threads,
            )
        self.note("critic_loss", loss)
        self.train_critic.backward(deltas)
        self.train_critic.optimizer.step()
        self.note("actor_loss", self._actor_loss(drawn, noise, coefficient, n_threads))
        self.train_actor.optimizer.step()
        # Where it is not at every step, stock train() runs
        self._average(self.targets, self.critics, model.tau)
        return True

    def _update_coefficient(self, log_prob: float) -> float:
        """The entropy coefficient; if it is learnt, with a step of its optimizer."""
        model = self.model
        variable, optimizer = model.log_ent_coef, model.ent_coef_optimizer
        if optimizer is None or variable is None:
            coefficient = model.ent_coef_tensor.item()
        else:
            logarithm = variable.item()
            coefficient = float(np.exp(np.float32(logarithm)))
            distance = np.float32(log_prob + model.target_entropy)
            self.note("ent_coef_loss", float(-np.float32(logarithm) * distance))
            optimizer.zero_grad()
            variable.grad = th.full_like(variable, -distance)
            optimizer.step()
        self.note("ent_coef", coefficient)
        return coefficient

    def _actor_loss(self, drawn: Any, noise: th.Tensor, coefficient: float, n_threads: int) -> float:
        """The actor's loss; its gradients are left behind."""
        if all(map(self._is_ready, self.critics)):
            with reading([self.body, self.of_heads, *self.critics]) as clean:
                if clean:
                    networks = [part.network for part in self.critics]
                    loss, found = native.module.sac_actor(self.sampler.batch, drawn, networks, coefficient, n_threads)
            if clean:
                self.train_actor.backward(found[:2])
                for part, deltas in zip(self.critics, found[2:], strict=True):
                    part.waits_for(deltas)
                return loss
        observations = self.sampler.samples().observations
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        normal = th.distributions.Normal(mean, log_std.exp())
        gaussian = mean + normal.scale * noise
        actions = th.tanh(gaussian)
        log_prob = normal.log_prob(gaussian).sum(dim=1) - th.log(1 - actions**2 + 1e-6).sum(dim=1)
        smallest = th.cat(self.critic(observations, actions), dim=1).min(dim=1, keepdim=True)[0]
        actor_loss = (coefficient * log_prob.reshape(-1, 1) - smallest).mean()
        self.train_actor.optimizer.zero_grad()
        actor_loss.backward()
        return actor_loss.item()



class DQNStep(Step):
    """:class:`Step` of DQN."""

    logged = ("loss",)

    def _find(self) -> None:
        model = self.model
        if type(model.q_net) is not QNetwork or type(model.q_net_target) is not QNetwork:
            raise Unsupported(f"the network is a {type(model.q_net).__name__}")
        self.q_net, self.q_net_target = model.q_net, model.q_net_target
        self.inner, self.inner_target = self.q_net.q_net, self.q_net_target.q_net
        self.online, self.target = _part(self.inner), _part(self.inner_target)
        self.train_q = Trained(_adam(self.policy.optimizer), [self.online])
        self.trained, self.parts = [self.train_q], [self.target, self.online]

    def _n_actions(self) -> int:
        return 0

    def _modules(self) -> list[nn.Module]:
        networks = [self.q_net, self.q_net_target]
        return [*networks, *{id(net.features_extractor): net.features_extractor for net in networks}.values()]

    def _is_present(self) -> bool:
        model = self.model
        return (
            model.q_net is self.q_net
            and model.q_net_target is self.q_net_target
            and self.q_net.q_net is self.inner
            and self.q_net_target.q_net is self.inner_target
            and self.policy.optimizer is self.train_q.optimizer
        )

    def optimizers(self) -> Any:
        return self.train_q.optimizer

    def _run(self) -> bool:
        sampler, choices = self.sampler, self.sampler.choices
        assert choices is not None
        actions = th.as_tensor(choices)
        with reading(self.parts) as clean:
            if not clean:
                return False
            loss, deltas = native.module.dqn(
                sampler.batch, self.online.network, self.target.network, actions.data_ptr(), th.get_num_threads()
            )
        self.note("loss", loss)
        self.train_q.backward(deltas)
        assert self.online.survivors is not None
        if not self.online.survivors.gradients.clip(self.model.max_grad_norm):
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.model.max_grad_norm)
        self.train_q.optimizer.step()
        return True


#: By algorithm: stock classes whose ``train()`` it is.
STEPS: dict[type[OffPolicyAlgorithm], type[Step]] = {TD3: TD3Step, DDPG: TD3Step, SAC: SACStep, DQN: DQNStep}
