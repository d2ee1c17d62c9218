"""RLx2 with Adam: the first step of a grown weight (its `reset_momentum` touches only SGD's momentum, a no-op there)."""

import pytest
import torch as th
from stable_baselines3 import TD3

from tests.helpers import make_model


def test_first_adam_step_of_a_grown_weight():
    rate = 1e-3
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5), learning_rate=rate)
    sparsifier = model.policy.sparsifier
    layer, optimizer = sparsifier.layers["critic.qf0.2"], sparsifier.optimizers["critic"]

    def step():
        optimizer.zero_grad()
        layer.weight.sum().backward()  # a gradient of one everywhere
        optimizer.step()

    for _ in range(20):
        step()
    optimizer.state[layer.weight]["step"].fill_(1e6)  # long after bias correction
    mask = layer.weight_mask.clone()
    dropped, grown = int(mask.view(-1).nonzero()[0]), int((~mask.view(-1)).nonzero()[0])
    mask.view(-1)[dropped], mask.view(-1)[grown] = False, True
    sparsifier.set_masks({"critic.qf0.2": mask})
    before = layer.weight.detach().clone()
    step()
    # m = 0.1 g and v = 0.001 g^2: a step of 0.1 / sqrt(0.001) = 3.16 learning rates
    change = (layer.weight - before).detach()
    assert float(change.view(-1)[grown]) == pytest.approx(-rate * 0.1 / 0.001**0.5, rel=1e-4)
    assert float(layer.weight.detach().view(-1)[dropped]) == 0.0
    assert not th.any(change[~mask])
