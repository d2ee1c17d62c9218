"""The zoo's own samplers, whose values are merged into a configuration instead of replacing parts of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_sparse.tuning.draft import Draft

_MISSING = object()


def stock_sampler(algo: str) -> Callable[..., dict[str, Any]] | None:
    """
    Find rl-zoo3's own sampler.

    :param algo: rl-zoo3's name of an algorithm.
    :return: The sampler that rl-zoo3 (or somebody else, but this package) has for it; None if there is none.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    sampler = HYPERPARAMS_SAMPLER.get(algo)
    return getattr(sampler, "stock", sampler)


def stock_algorithms() -> list[str]:
    """
    List the algorithms that rl-zoo3 searches.

    :return: Algorithms that rl-zoo3 has a sampler for.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    return [algo for algo in HYPERPARAMS_SAMPLER if stock_sampler(algo) is not None]


def sample_stock(trial: Any, draft: Draft) -> None:
    """
    Let rl-zoo3's sampler suggest, and merge what it says.

    :param trial: An Optuna trial.
    :param draft: The configuration, which is changed.
    """
    sampler = stock_sampler(draft.algo)
    assert sampler is not None, "check_searches() refuses such algorithms"
    context = {"using_her_replay_buffer": draft.uses_hindsight, "her_kwargs": draft.buffer_kwargs}
    # Of the two numbers only the size of a noise depends on one; it is written by name below
    values = sampler(trial, 1, 1, context)
    draft.policy_kwargs |= values.pop("policy_kwargs", {})
    draft.buffer_kwargs |= values.pop("replay_buffer_kwargs", {})
    if values.pop("action_noise", None) is not None or trial.params.get("noise_type", _MISSING) is None:
        draft.set_noise(trial.params["noise_type"], trial.params["noise_std"])
    if "gamma" in values:
        draft.set_gamma(values.pop("gamma"))
    draft.values |= values
