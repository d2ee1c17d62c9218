"""A gradient step of TD3 and DDPG."""

from __future__ import annotations

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.td3.policies import Actor

from sb3_sparse.accelerated.parts import Trained, reading
from sb3_sparse.accelerated.steps import ActorCriticStep, Unsupported, adam_of, part_of
from sb3_sparse.engine import native


class TD3Step(ActorCriticStep):
    """Steps of TD3 and DDPG."""

    logged = ("actor_loss", "critic_loss")
    counts_itself = True

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        super().__init__(model)
        actor, target = self.model.actor, self.model.actor_target
        if type(actor) is not Actor or type(target) is not Actor:
            raise Unsupported(f"the actor is a {type(actor).__name__}")
        if self.model.critic_batch_norm_stats or self.model.actor_batch_norm_stats:
            raise Unsupported("networks have batch normalisation")
        self._require_all(actor, [actor.mu])
        self._require_all(target, [target.mu])
        self.actor_target = target
        self.mu, self.mu_target = actor.mu, target.mu
        self.act, self.act_target = part_of(self.mu), part_of(self.mu_target)
        self.train_actor = Trained(adam_of(actor.optimizer), [self.act])
        self.trained = [self.train_actor, self.train_critic]
        self.parts = [self.act_target, *self.targets, *self.critics, self.act]
        self._watch([actor, target, self.critic, self.critic_target])

    def _has_networks(self) -> bool:
        return (
            super()._has_networks()
            and self.model.actor_target is self.actor_target
            and self.actor.mu is self.mu
            and self.actor_target.mu is self.mu_target
        )

    def run(self) -> bool:
        model, sampler, n_threads = self.model, self.sampler, th.get_num_threads()
        with reading(self.parts) as clean:
            if not clean:
                return False
            model._n_updates += 1
            noise = sampler.noise().normal_(0, model.target_policy_noise)
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
        self.train_critic.step()
        if model._n_updates % model.policy_delay == 0:
            self.note("actor_loss", self._actor_loss(n_threads))
            self.train_actor.step()
            self.average(self.targets, self.critics, model.tau)
            self.average([self.act_target], [self.act], model.tau)
        return True

    def _actor_loss(self, n_threads: int) -> float:
        """The actor's loss; its gradients are left behind."""
        judge = self.critics[0]
        if self.is_ready(self.act) and self.is_ready(judge):
            with reading([self.act, judge]) as clean:
                if clean:
                    loss, (acted, judged) = native.module.td3_actor(
                        self.sampler.batch, self.act.network, judge.network, n_threads
                    )
            if clean:
                self.train_actor.backward([acted])
                judge.waits_for(judged)
                return loss
        observations = self.sampler.samples().observations
        actor_loss = -self.critic.q1_forward(observations, self.actor(observations)).mean()
        self.train_actor.optimizer.zero_grad()
        actor_loss.backward()
        return actor_loss.item()
