"""A gradient step of DQN."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.dqn.policies import QNetwork

from sb3_sparse.accelerated.parts import Trained, reading
from sb3_sparse.accelerated.steps import Step, Unsupported, adam_of, part_of
from sb3_sparse.engine import native


class DQNStep(Step):
    """Steps of DQN."""

    logged = ("loss",)

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        super().__init__(model)
        q_net, target = self.model.q_net, self.model.q_net_target
        if type(q_net) is not QNetwork or type(target) is not QNetwork:
            raise Unsupported(f"the network is a {type(q_net).__name__}")
        self.q_net, self.q_net_target = q_net, target
        self.inner, self.inner_target = q_net.q_net, target.q_net
        self.online, self.target = part_of(self.inner), part_of(self.inner_target)
        self.train_q = Trained(adam_of(self.model.policy.optimizer), [self.online])
        self.trained, self.parts = [self.train_q], [self.target, self.online]
        self._watch([q_net, target])

    def _has_networks(self) -> bool:
        model = self.model
        return (
            model.q_net is self.q_net
            and model.q_net_target is self.q_net_target
            and self.q_net.q_net is self.inner
            and self.q_net_target.q_net is self.inner_target
            and model.policy.optimizer is self.train_q.optimizer
        )

    def optimizers(self) -> Any:
        return self.train_q.optimizer

    def run(self) -> bool:
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
        assert self.target.survivors is not None
        # Stock's norm is that of all the policy's gradients, whoever else made some
        others = any(parameter.grad is not None for parameter in self.target.survivors.parameters)
        if others or not self.online.survivors.gradients.clip(self.model.max_grad_norm):
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.model.max_grad_norm)
        self.train_q.step()
        return True
