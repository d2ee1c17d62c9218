"""
Put as ``conftest.py`` beside the tests of Stable-Baselines3 or sb3-contrib: every policy they name is a sparse one, and after
each of them all sparse policies that are alive keep their invariants.
"""

import os
from pathlib import Path
from weakref import WeakSet

import pytest
import torch as th

from sb3_sparse.masks import plan
from sb3_sparse.nn.sparsifier import Sparsifier
from sb3_sparse.policies.algorithms import SPARSE_POLICIES

th.set_num_threads(1)
plan.DEFAULT_SPARSITY = float(os.environ["PEERS_SPARSITY"])
for _algorithm in SPARSE_POLICIES:
    for _name in [name for name in _algorithm.policy_aliases if not name.startswith("Sparse")]:
        _algorithm.policy_aliases[_name] = _algorithm.policy_aliases[f"Sparse{_name}"]

_initialize, _alive = Sparsifier.initialize, WeakSet()
_n_policies = 0


def _watched(self, *args):
    global _n_policies
    _n_policies += 1
    _alive.add(self)
    _initialize(self, *args)


Sparsifier.initialize = _watched


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    broken = [breach for sparsifier in list(_alive) for breach in sparsifier.violations()]
    assert broken == []
    return result


def pytest_runtest_teardown():
    _alive.clear()


def pytest_sessionfinish():
    Path(os.environ["PEERS_COUNT"]).write_text(str(_n_policies))
