"""Several threads: what each computes is what it would have computed alone."""

import copy
import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_sparse.engine import crossover, sequence
from tests.engine.networks import needs_kernels
from tests.helpers import equal_state, make_model, observations


@pytest.fixture(autouse=True)
def switch_often():
    """Threads take turns after a few operations."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["native", "torch"])
def engine(request, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_ENGINE", request.param)
    return request.param


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO, DQN])
def test_predicting_in_four_threads(algorithm, engine):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    rows = observations(model, 8)
    expected = [model.predict(row, deterministic=True)[0] for row in rows]
    fresh = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))  # the threads meet it unprepared

    def predict(thread):
        found = [fresh.predict(rows[(index + thread) % 8], deterministic=True)[0] for index in range(40)]
        return all(np.array_equal(action, expected[(index + thread) % 8]) for index, action in enumerate(found))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(predict, range(4)))


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_forward_passes_in_four_threads(algorithm, engine):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    rows = [th.from_numpy(observations(model, n)) for n in (1, 5, 24)]

    def passes(policy, row):
        actions = policy._predict(row, deterministic=True)
        return [actions.detach(), *(q.detach() for q in policy.critic(row, actions))]

    expected = [passes(copy.deepcopy(model.policy), row) for row in rows]

    def run(thread):
        for index in range(20):
            number = (index + thread) % 3
            found = passes(model.policy, rows[number])
            if not all(th.equal(one, other) for one, other in zip(found, expected[number], strict=True)):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(4)))


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_a_training_is_the_same_while_others_predict(algorithm, engine):
    models = [make_model(algorithm, policy_kwargs=dict(sparsity=0.7)).learn(60)]
    models.append(make_model(algorithm, policy_kwargs=dict(sparsity=0.7)))
    rows, over = observations(models[1], 8), []

    def predict():
        while not over:
            actions, _ = models[1].predict(rows, deterministic=True)
            assert np.isfinite(actions).all()
            # Somebody looks at memory that the training writes to, too
            models[1].actor.state_dict()

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(predict) for _ in range(2)]
        try:
            models[1].learn(60)
        finally:
            over.append(True)
        for one in waiting:
            one.result()
    assert equal_state(*models)


def test_two_models_in_two_threads(engine):
    data = th.randn(16, 7, generator=th.Generator().manual_seed(0)), th.randn(16, 2, generator=th.Generator().manual_seed(1))

    def train(model):
        for _ in range(30):
            model.critic.optimizer.zero_grad()
            sum(q.pow(2).mean() for q in model.critic(*data)).backward()
            model.critic.optimizer.step()
        return model

    alone = [train(make_model(TD3, policy_kwargs=dict(sparsity=0.7), seed=seed)) for seed in (1, 2)]
    together = [make_model(TD3, policy_kwargs=dict(sparsity=0.7), seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(train, together))
    assert all(equal_state(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("use_sde", [False, True])
def test_distributions_are_copied_and_pickled(use_sde):
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.7), use_sde=use_sde)
    model.learn(40)
    row = observations(model, 3)
    for other in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy.actor.action_dist))):
        distribution = getattr(other, "actor", None).action_dist if hasattr(other, "actor") else other
        assert type(distribution).__name__ == type(model.policy.actor.action_dist).__name__
        assert isinstance(distribution, type(model.policy.actor.action_dist).__mro__[2])
    copied = copy.deepcopy(model.policy)
    assert np.array_equal(copied.predict(row, deterministic=True)[0], model.predict(row, deterministic=True)[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@needs_kernels
def test_a_forked_process_has_every_lock_free():
    """Whatever another thread held when the process was forked."""
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.8, engine="native"))
    observation = model.observation_space.sample()
    expected = model.predict(observation, deterministic=True)[0]
    sequences = [module for module in model.policy.actor.modules() if isinstance(module, sequence.SparseSequential)]
    locks = [one.present_survivors().lock for one in sequences]
    assert locks
    held, done = threading.Event(), threading.Event()

    def hold():
        with ExitStack() as stack:
            for lock in (*locks, sequence._making, crossover._measuring):
                stack.enter_context(lock)
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = np.array_equal(model.predict(observation, deterministic=True)[0], expected)
        with crossover._measuring, sequence._making:
            os._exit(0 if same else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0
