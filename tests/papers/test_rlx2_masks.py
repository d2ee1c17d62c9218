"""
RLx2 (Tan et al., ICLR 2023, algorithm 1 and the authors' release): masks and weights, step by step, in float64.

The reference below is written from what the paper and its release describe: gradients are masked; at every delta-th step of
the network's own optimizer before T_end the share zeta_t = zeta / 2 * (1 + cos(pi * t / T_end)) of every layer's weights of
least magnitude is dropped and as many are grown by the magnitude of the dense gradient, new ones at zero; that step of the
optimizer is left out; moments are never touched, weights are masked after every step.
"""

import math

import pytest
import torch as th
from stable_baselines3 import TD3

from sb3_sparse import RigL
from tests.helpers import make_model, start_training

ZETA = 0.5


class Reference:
    """The scheduler, on plain tensors."""

    def __init__(self, parameters, masks, delta, t_end, rate):
        self.parameters = {name: th.nn.Parameter(value.clone()) for name, value in parameters.items()}
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.optimizer = th.optim.Adam(list(self.parameters.values()), lr=rate)
        self.delta, self.t_end, self.t = delta, t_end, 0
        self.events = []

    def step(self, loss):
        self.t += 1
        self.optimizer.zero_grad()
        loss(self.parameters).backward()
        dense = {name: self.parameters[name].grad.clone() for name in self.masks}
        for name, mask in self.masks.items():
            self.parameters[name].grad *= mask
        if self.t % self.delta == 0 and self.t < self.t_end:
            self.events.append(self.t)
            share = ZETA / 2 * (1 + math.cos(math.pi * self.t / self.t_end))
            for name, mask in self.masks.items():
                if not mask.all():
                    self.update(self.parameters[name].data, mask, dense[name].abs(), share)
        else:
            self.optimizer.step()
        for name, mask in self.masks.items():
            # Weights that were dropped have moments still
            self.parameters[name].data *= mask

    def update(self, weight, mask, scores, share):
        active = mask.view(-1).nonzero().flatten()
        n_drop = int(len(active) * share)
        kept = active[weight.view(-1)[active].abs().argsort(descending=True)[: len(active) - n_drop]]
        candidates = th.ones(mask.numel(), dtype=th.bool)
        candidates[kept] = False
        candidates = candidates.nonzero().flatten()
        grown = candidates[scores.view(-1)[candidates].argsort(descending=True)[:n_drop]]
        was = mask.clone()
        mask.zero_()
        mask.view(-1)[kept] = True
        mask.view(-1)[grown] = True
        # What was not there starts at zero; what was dropped and grown again keeps its value
        weight[mask & ~was] = 0.0


def critic_loss(parameters, batch):
    """Mean squared error of both critics, written out."""
    inputs, goals = batch
    loss = th.zeros((), dtype=th.float64)
    for critic in ("qf0", "qf1"):
        values = inputs
        for index in (0, 2, 4):
            weight, bias = (parameters[f"critic.{critic}.{index}{kind}"] for kind in (".weight", ".bias"))
            values = values @ weight.T + bias
            values = th.tanh(values) if index < 4 else values
        loss = loss + (values - goals).square().mean()
    return loss


@pytest.mark.parametrize("t_end", [60, 63, 7])
@pytest.mark.parametrize("stride", [1, 2])  # the actor of TD3 makes a step at every second environment step
def test_step_by_step(t_end, stride):
    delta, rate, learning_starts = 6, 1e-2, 20
    model = make_model(
        TD3,
        policy_kwargs=dict(
            sparsity=0.7,
            distribution="er",
            initial_mask="magnitude",
            activation_fn=th.nn.Tanh,
            net_arch=[24, 16],
            engine="torch",
        ),
        learning_rate=rate,
        learning_starts=learning_starts,
    )
    model.policy.double()
    sparsifier = model.policy.sparsifier
    names = sparsifier.networks["critic"]
    callback = RigL(delta, ZETA, moments="keep", skip_step=True, networks="critic")
    start_training(model, callback, learning_starts + stride * t_end)
    parameters = {name: value.detach() for name, value in model.policy.named_parameters() if name.startswith("critic.")}
    reference = Reference(
        parameters, {f"{name}.weight": sparsifier.layers[name].weight_mask for name in names}, delta, t_end, rate
    )
    optimizer, generator = sparsifier.optimizers["critic"], th.Generator().manual_seed(0)
    online = dict(model.policy.named_parameters())
    for step in range(1, t_end + 1):
        model.num_timesteps = learning_starts + stride * step
        callback.on_step()
        inputs = th.randn(16, 9, dtype=th.float64, generator=generator)
        batch = inputs, inputs[:, :1].sin() + 0.3 * step / t_end
        optimizer.zero_grad()
        critic_loss(online, batch).backward()
        optimizer.step()
        reference.step(lambda values, batch=batch: critic_loss(values, batch))
        for name in names:
            assert th.equal(sparsifier.layers[name].weight_mask, reference.masks[f"{name}.weight"]), (step, name)
        for name, value in reference.parameters.items():
            assert th.allclose(online[name], value, rtol=0, atol=1e-12), (step, name)
    assert [event.step for event in callback.events] == reference.events
    assert reference.events == [step for step in range(delta, t_end, delta)]
    assert any(event.n_grown > 0 for event in callback.events)
    for event in callback.events:
        assert event.fraction == pytest.approx(ZETA / 2 * (1 + math.cos(math.pi * event.step / t_end)), rel=1e-12)
