"""Whole episodes: of a model, or of what was exported from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

#: Told what is being done, how much of it is done, and how much there is to do.
Watch = Callable[[str, int, int], None]


def unwatched(what: str, done: int, total: int) -> None:
    """
    Show nothing.

    :param what: What is being done.
    :param done: How much of it is done.
    :param total: How much there is to do.
    """


def episode_returns(
    player: Any, env: VecEnv, n_episodes: int, *, maskable: bool, watch: Watch = unwatched, what: str = "episodes"
) -> tuple[float, ...]:
    """
    Play episodes, deterministically.

    :param player: Anything with SB3's ``predict``.
    :param env: Where it plays.
    :param n_episodes: How many.
    :param maskable: Whether the player takes action masks; it is given those of an environment that has them.
    :param watch: Told of the episodes that are over.
    :param what: What it is told that these are.
    :return: Their returns.
    """
    known = 0

    def count(found: dict[str, Any], _: dict[str, Any]) -> None:
        # Called before an episode that ends here is counted: the next step tells of it, and the last line of this function
        nonlocal known
        if (n_over := len(found["episode_rewards"])) != known:
            known = n_over
            watch(what, known, n_episodes)

    watch(what, known, n_episodes)
    arguments: Any = dict(
        n_eval_episodes=n_episodes, deterministic=True, return_episode_rewards=True, warn=False, callback=count
    )
    if maskable and is_masking_supported(env):
        returns, _ = evaluate_maskable(player, env, use_masking=True, **arguments)
    else:
        returns, _ = evaluate_policy(player, env, **arguments)
    watch(what, n_episodes, n_episodes)
    return tuple(map(float, returns))  # type: ignore[arg-type]
