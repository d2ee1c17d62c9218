"""What studies in tests are about."""

from __future__ import annotations

from typing import Any

from sb3_sparse.tuning import configuration, study

TINY = {"learning_starts": 60, "batch_size": 16, "policy_kwargs": {"net_arch": [16, 16]}}


def section(**parameters: Any) -> dict[str, Any]:
    """A configuration that is trained within seconds."""
    return configuration.load_section("sac", "Pendulum-v1", steps=120, parameters={**TINY, **parameters})


def make_subject(kind: str = "search", **values: Any) -> study.Subject:
    """SAC on Pendulum-v1, return against bytes, unless something else is given."""
    usual: dict[str, Any] = dict(
        kind=kind,
        algo="sac",
        env="Pendulum-v1",
        objectives=("return", "bytes"),
        search=("sparsity",),
        section=section(),
        n_inputs=3,
        episodes=2,
        seed=0,
        seeds=1,
        sampler="random",
    )
    return study.Subject(**{**usual, **values})
