"""Stock under torch.compile computes what stock computes."""

import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed

from sb3_sparse.benchmark.compiled import compile_networks
from sb3_sparse.benchmark.models import make_model


@pytest.mark.parametrize(("algo", "n_passes"), [("td3", 5), ("sac", 4), ("dqn", 2)])
def test_every_pass_is_compiled_and_none_changes_what_is_learnt(algo, n_passes, monkeypatch):
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    stock, twin = (make_model(algo, [8, 8], None, batch_size=8) for _ in range(2))
    compiled = th.compile
    monkeypatch.setattr(th, "compile", lambda model: compiled(model, backend=backend))
    assert compile_networks(twin) is twin
    for model in (stock, twin):
        set_random_seed(0)
        model.train(4, 8)
    assert len(traced) >= n_passes
    for one, other in zip(stock.policy.parameters(), twin.policy.parameters(), strict=True):
        assert th.equal(one, other)
