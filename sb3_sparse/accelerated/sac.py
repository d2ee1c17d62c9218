"""A gradient step of SAC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.sac import policies as sac
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_sparse.accelerated.parts import Part, Trained, reading
from sb3_sparse.accelerated.steps import ActorCriticStep, Unsupported, adam_of, part_of
from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SeparateLayers
from sb3_sparse.policies.threads import kind_of

#: What the kernels compute with, see kernels.h.
_EPSILON, _LOG_STD = 1e-6, (-20, 2)


class _Counted(int):
    """
    Stands in for ``target_update_interval`` in a ``train()`` that makes one of several steps, which it takes for the first.
    For everybody else it is that number.
    """

    #: Which one it makes.
    index = 0

    def __rmod__(self, gradient_step: int) -> int:
        return (gradient_step + self.index) % int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


class SACStep(ActorCriticStep):
    """Steps of SAC."""

    latent_pi: nn.Module
    heads: list[Any]
    #: The layers before the heads, and the heads.
    body: Part
    of_heads: Part
    logged = ("ent_coef", "actor_loss", "critic_loss", "ent_coef_loss")

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        super().__init__(model)
        actor = self.model.actor
        if type(actor) is not Actor:
            raise Unsupported(f"the actor is a {type(actor).__name__}")
        if self.model.use_sde:
            raise Unsupported("exploration depends on the state (use_sde)")
        if self.model.batch_norm_stats:
            raise Unsupported("networks have batch normalisation")
        optimizer = adam_of(actor.optimizer)
        self.latent_pi, self.heads = actor.latent_pi, [actor.mu, actor.log_std]
        side_by_side = [part for part in optimizer.parts if isinstance(part, SeparateLayers)]
        if len(side_by_side) != 1 or side_by_side[0].layers != self.heads:
            raise Unsupported("the actor's heads are not two sparse layers")
        self.body, self.of_heads = part_of(self.latent_pi), Part(side_by_side[0])
        self.train_actor = Trained(optimizer, [self.body, self.of_heads])
        self.trained = [self.train_actor, self.train_critic]
        self.parts = [self.body, self.of_heads, *self.targets, *self.critics]
        self._watch([actor, self.critic, self.critic_target])

    def _has_networks(self) -> bool:
        actor = self.actor
        return (
            super()._has_networks()
            and actor.latent_pi is self.latent_pi
            and [actor.mu, actor.log_std] == self.heads
            and any(part is self.of_heads.part for part in self.train_actor.optimizer.parts)
        )

    def optimizers(self) -> Any:
        found = super().optimizers()
        return found if self.model.ent_coef_optimizer is None else [*found, self.model.ent_coef_optimizer]

    def why_not(self) -> str | None:
        variable, distribution = self.model.log_ent_coef, self.actor.action_dist
        if variable is not None:
            if variable._backward_hooks or variable._post_accumulate_grad_hooks:
                return "the entropy coefficient has hooks"
            if not variable.is_cpu or not variable.requires_grad:
                return "the entropy coefficient is frozen, or not on the CPU"
        if kind_of(distribution) is not SquashedDiagGaussianDistribution or distribution.epsilon != _EPSILON:
            return (
                f"actions come from a {type(distribution).__name__} of other parameters than stock's, or another distribution"
            )
        if (sac.LOG_STD_MIN, sac.LOG_STD_MAX) != _LOG_STD:
            return "standard deviations are clamped at other values than stock's"
        return super().why_not()

    def run(self) -> bool:
        model, sampler, n_threads = self.model, self.sampler, th.get_num_threads()
        with reading(self.parts) as clean:
            if not clean:
                return False
            noise = sampler.noise().normal_()
            body, heads = self.body.network, self.of_heads.network
            log_prob, drawn = native.module.sac_draw(sampler.batch, body, heads, noise.data_ptr(), n_threads)
            if not isfinite(log_prob):
                self._refuse()
            coefficient = self._update_coefficient(log_prob)
            next_noise = sampler.noise().normal_()
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
        self.train_critic.step()
        self.note("actor_loss", self._actor_loss(drawn, noise, coefficient, n_threads))
        self.train_actor.step()
        if self.index % model.target_update_interval == 0:
            self.average(self.targets, self.critics, model.tau)
        return True

    @contextmanager
    def as_only_one(self) -> Iterator[None]:
        model = self.model
        interval = model.target_update_interval
        if self.index == 0 or interval == 1:
            yield
            return
        counted = model.target_update_interval = _Counted(interval)
        counted.index = self.index
        try:
            yield
        finally:
            # Unless a hook or a callback has set another one
            if model.target_update_interval is counted:
                model.target_update_interval = interval

    def _refuse(self) -> None:
        """Refuse what the stock distribution refuses: means and standard deviations that are not numbers."""
        with th.no_grad():
            mean, log_std, _ = self.actor.get_action_dist_params(self.sampler.samples().observations)
            self.actor.action_dist.proba_distribution(mean, log_std)

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
        if all(map(self.is_ready, (self.body, self.of_heads, *self.critics))):
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
