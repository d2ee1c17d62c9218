"""The state of a vectorized environment: its wrappers, and the environments themselves, in this process or in others."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_sparse.checkpoint.environments import (
    GIVEN,
    RESTORE_METHOD,
    SAVE_METHOD,
    decode_environment,
    decode_native,
    encode_environment,
    living,
    lost,
    new_encoder,
)
from sb3_sparse.checkpoint.names import CannotEncode, Names
from sb3_sparse.checkpoint.plain import Decoder, Encoder, attributes_of

#: What a VecEnv says of itself, or overwrites at every step before it reads it.
_OF_VEC_ENV = frozenset(
    {"action_space", "class_attributes", "envs", "keys", "metadata", "num_envs", "obs_spaces", "observation_space", "venv"}
    | {"actions", "buf_dones", "buf_infos", "buf_obs", "buf_rews", "render_mode"}
    | {"closed", "processes", "remotes", "waiting", "work_remotes"}
)
#: Name of the method that environments in other processes are given, and the signals that those processes leave to this one.
_METHOD = "_sb3_sparse_checkpoint"
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def wrappers_of(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    """
    List the wrappers of a vectorized environment.

    :param env: A vectorized environment.
    :return: Its wrappers from the outside in, and what they wrap.
    """
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers, env


# --- One environment, wherever it is ---


def _save(env: gym.Env) -> tuple[Any, dict[str, np.ndarray]]:
    encoder = new_encoder()
    node = encoder.finish(encode_environment(env, encoder, "env"))
    return node, encoder.arrays


def _restore(env: gym.Env, node: Any, arrays: Mapping[str, np.ndarray], trusted: bool) -> None:
    packages = frozenset(type(layer).__module__.partition(".")[0] for layer in living(env, "env").values())
    names = Names(trusted=trusted, packages=packages - {"builtins"})
    decode_environment(node, env, Decoder(node, arrays, names, decode_native, living(env, "env")))


def _leave_signals(env: gym.Env) -> None:
    """A Ctrl-C goes to every process of the terminal, and a batch system's signal to every process of the job."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


_ACTIONS = {"save": _save, "restore": _restore, "leave signals": _leave_signals}


def _method(env: gym.Env, action: str, *arguments: Any) -> tuple[Any, str | None]:
    try:
        return _ACTIONS[action](env, *arguments), None  # type: ignore[operator]
    except ValueError as error:
        # In another process it would end that one
        return None, str(error)


def _give_method() -> str:
    # SubprocVecEnv calls methods of the environment, and nothing else, in the processes where those live
    setattr(gym.Env, _METHOD, _method)
    return "given"


class _GiveMethod:
    """Unpickled in another process, it gives the environments there the method that this one calls."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _give_method, ()


def in_every_environment(env: VecEnv, action: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """
    Do something in every environment, wherever it runs.

    :param env: Environments, without wrappers.
    :param action: ``"save"``, ``"restore"`` or ``"leave signals"``.
    :param arguments: Arguments for each.
    :return: What each gave.
    :raises ValueError: If one of them failed.
    """
    if isinstance(env, SubprocVecEnv):
        env.set_attr(GIVEN, _GiveMethod())
        for remote, given in zip(env.remotes, arguments, strict=True):
            remote.send(("env_method", (_METHOD, (action, *given), {})))
        results = [remote.recv() for remote in env.remotes]
    else:
        assert isinstance(env, DummyVecEnv)
        results = [_method(one, action, *given) for one, given in zip(env.envs, arguments, strict=True)]
    for _, error in results:
        if error is not None:
            raise ValueError(error)
    return [result for result, _ in results]


def leave_signals(env: VecEnv) -> list[Any]:
    """
    Let the processes in which environments live go on when a signal arrives: this process decides what becomes of it.

    :param env: A vectorized environment.
    :return: These processes; they no longer end by a signal that they can ignore.
    """
    _, base = wrappers_of(env)
    if not isinstance(base, SubprocVecEnv):
        return []
    in_every_environment(base, "leave signals", [()] * base.num_envs)
    return base.processes


# --- All of them ---


@dataclass
class SavedVecEnv:
    """
    The state of a vectorized environment.

    :param tree: The state as JSON.
    :param arrays: Arrays that it refers to.
    :param lost: Why episodes have to begin again; empty if they go on exactly.
    :param notes: What wrappers hold that is not kept.
    """

    tree: dict[str, Any]
    arrays: dict[str, np.ndarray]
    lost: list[str]
    notes: list[str]


def save_vec_env(env: VecEnv) -> SavedVecEnv:
    """
    Save the state of a vectorized environment.

    :param env: A vectorized environment.
    :return: Its state. Arrays may be the environment's own, and change with it.
    """
    wrappers, base = wrappers_of(env)
    encoder = new_encoder()
    lines: list[str] = []
    notes: list[str] = []
    tree: dict[str, Any] = {"parts": [_save_part(part, encoder, notes) for part in (*wrappers, base)]}
    if isinstance(base, (DummyVecEnv, SubprocVecEnv)):
        found = in_every_environment(base, "save", [()] * base.num_envs)
        tree["envs"] = [node for node, _ in found]
        tree["arrays"] = []
        for index, (node, arrays) in enumerate(found):
            lines += [f"env {index}: {line}" for line in lost(node)]
            tree["arrays"].append({name: encoder.array(array, f"env {index}/{name}") for name, array in arrays.items()})
    elif "said" not in tree["parts"][-1]:
        lines.append(f"{type(base).__name__} keeps its environments in a way of its own")
    return SavedVecEnv(encoder.finish(tree), encoder.arrays, lines, notes)


def _save_part(part: VecEnv, encoder: Encoder, notes: list[str]) -> dict[str, Any]:
    node: dict[str, Any] = {"class": f"{type(part).__module__}:{type(part).__qualname__}"}
    if hasattr(type(part), SAVE_METHOD) and hasattr(type(part), RESTORE_METHOD):
        return {**node, "said": encoder.encode(getattr(part, SAVE_METHOD)(), f"{type(part).__name__}.{SAVE_METHOD}()")}
    node["attributes"] = {}
    for name, value in attributes_of(part).items():
        if name in _OF_VEC_ENV or encoder.ignores(value):
            continue
        try:
            with encoder.attempt():
                node["attributes"][name] = encoder.encode(value, f"{type(part).__name__}.{name}")
        except CannotEncode as error:
            if name not in ("reset_infos", "_options"):
                notes.append(str(error))
    return node


def restore_vec_env(env: VecEnv, tree: Any, arrays: Mapping[str, np.ndarray], *, trusted: bool) -> None:
    """
    Bring a vectorized environment to the state it was in, in place. Environments in this process may have been in others, and
    the other way round.

    :param env: One made in the same way.
    :param tree: See :class:`SavedVecEnv`.
    :param arrays: See there.
    :param trusted: Whether the file may name classes of any package.
    :raises ValueError: If it was made in another way.
    """
    wrappers, base = wrappers_of(env)
    parts, saved = [*wrappers, base], tree["parts"]
    names, expected = [type(part).__name__ for part in parts], [node["class"].rpartition(":")[2] for node in saved]
    same_base = names[-1] == expected[-1] or {names[-1], expected[-1]} == {"DummyVecEnv", "SubprocVecEnv"}
    if names[:-1] != expected[:-1] or not same_base:
        raise ValueError(
            f"the environment must be made as it was: the run's is {' of '.join(expected)}, the one that was given is "
            f"{' of '.join(names)}"
        )
    if "envs" in tree and len(tree["envs"]) != base.num_envs:
        raise ValueError(f"the run has {len(tree['envs'])} environments, {base.num_envs} were given")
    packages = frozenset(type(part).__module__.partition(".")[0] for part in parts)
    decoder = Decoder(tree["parts"], arrays, Names(trusted=trusted, packages=packages), decode_native)
    for part, node in zip(parts, saved, strict=True):
        if "said" in node:
            getattr(part, RESTORE_METHOD)(decoder.decode(node["said"]))
        else:
            decoder.set_attributes(part, node["attributes"])
    # A tuple where environments live in other processes
    base.reset_infos = list(base.reset_infos)
    if "envs" in tree:
        inside = [{name: arrays[key] for name, key in index.items()} for index in tree["arrays"]]
        in_every_environment(base, "restore", [(*each, trusted) for each in zip(tree["envs"], inside, strict=True)])
