"""
The state of one environment, down its chain of wrappers.

Everything is kept by attributes, as Python has them. Two simulators have more: MuJoCo, whose whole ``MjData`` is copied into
the live one (positions and velocities are not enough: Ant and Humanoid read contact forces and other derived values), and the
Arcade Learning Environment, whose system state is cloned with its random generator. An environment of another kind can say
for itself what it is made of, by two methods: ``checkpoint_state()``, whose result is made of numbers, text, arrays and
containers of these, and ``restore_checkpoint_state(state)``.
"""

from __future__ import annotations

import sys
import time
import types
import zlib
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor, ResultsWriter

from sb3_sparse.checkpoint.names import CannotEncode
from sb3_sparse.checkpoint.plain import Decoder, Encoder, kind_of

#: What draws pictures is made anew, and nothing that is learnt depends on it.
_RENDERERS = (
    "pygame",
    "matplotlib",
    "PIL",
    "cv2",
    "glfw",
    "pyglet",
    "OpenGL",
    "imageio",
    "gymnasium.envs.mujoco.mujoco_rendering",
)
#: A wrapper that rl-zoo3 puts in another's place wherever it is imported.
_SAME = {"rl_zoo3.gym_patches:PatchedTimeLimit": "gymnasium.wrappers.common:TimeLimit"}
#: How an environment says for itself what it is made of.
SAVE_METHOD, RESTORE_METHOD = "checkpoint_state", "restore_checkpoint_state"
#: Mark on environments in other processes that have been given a method to save and restore them.
GIVEN = "_sb3_sparse_checkpoint_given"
#: Attributes that belong to the place in the chain, not to the state.
_OF_CHAIN = frozenset({"env", "spec", "_cached_spec", "metadata", "_metadata", "render_mode", GIVEN})


def ignores(value: Any) -> bool:
    """
    Whether an attribute of an environment need not be kept.

    :param value: Value of an environment's attribute.
    :return: Whether it is code, or draws, and so does not change.
    """
    code = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, EnvSpec)
    return isinstance(value, code) or kind_of(value).startswith(_RENDERERS)


def layers_of(env: gym.Env) -> list[gym.Env]:
    """
    List an environment and what it wraps.

    :param env: An environment.
    :return: It and all that it wraps, from the outside in.
    """
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _class_name(value: Any) -> str:
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    return _SAME.get(name, name)


def _speaks_for_itself(layer: gym.Env) -> bool:
    return hasattr(type(layer), SAVE_METHOD) and hasattr(type(layer), RESTORE_METHOD)


# --- Kinds of values that only environments have ---


def encode_native(value: Any, path: str, encoder: Encoder) -> dict[str, Any] | None:
    """Natives of an :class:`~sb3_sparse.checkpoint.plain.Encoder`: what environments are made of beside plain values."""
    if isinstance(value, spaces.Space):
        # What a space is, the environment's constructor says; only its generator has a state
        parts = [encoder.encode(part, f"{path}.spaces") for part in parts_of(value)]
        return {"$": "space", "generator": encoder.encode(value._np_random, f"{path}._np_random"), "parts": parts}
    if isinstance(value, ResultsWriter):
        value.file_handler.flush()
        with open(value.file_handler.name, "rb") as stream:
            text = stream.read()
        return {"$": "log file", "at": encoder.array(np.frombuffer(text, np.uint8), f"{path}.text")}
    kind = kind_of(value)
    if kind.startswith("mujoco."):
        mujoco = sys.modules["mujoco"]
        if isinstance(value, (mujoco.MjData, mujoco.MjModel)):
            data = np.frombuffer(zlib.compress(value.__getstate__(), 1), np.uint8)
            return {"$": type(value).__name__, "at": encoder.array(data, path)}
    if kind.startswith("ale_py.") and hasattr(value, "cloneState"):
        state = value.cloneState(include_rng=True).serialize()
        return {"$": "ale", "at": encoder.array(np.frombuffer(state, np.uint8), path)}
    return None


def decode_native(node: dict[str, Any], live: Any, decoder: Decoder) -> Any:
    """Natives of a :class:`~sb3_sparse.checkpoint.plain.Decoder`; the other half of :func:`encode_native`."""
    restore = _RESTORE.get(node["$"])
    if restore is None:
        return NotImplemented
    if live is None:
        if node["$"] == "log file":
            return None  # who goes on may write none
        raise ValueError(f"the environment has nothing in the place of a {node['$']}")
    restore(node, live, decoder)
    return live


def parts_of(space: spaces.Space) -> list[spaces.Space]:
    """
    List the spaces that a space is made of.

    :param space: A space.
    :return: The spaces that it is made of.
    """
    parts = space.spaces if isinstance(space, (spaces.Dict, spaces.Tuple, spaces.OneOf)) else ()
    return list(parts.values() if isinstance(parts, dict) else parts)


def _restore_space(node: dict[str, Any], live: Any, decoder: Decoder) -> None:
    live._np_random = decoder.decode(node["generator"], live._np_random)
    for part, saved in zip(parts_of(live), node["parts"], strict=True):
        decoder.decode(saved, part)


def _restore_log(node: dict[str, Any], live: Any, decoder: Decoder) -> None:
    stream = live.file_handler
    stream.flush()
    stream.seek(0)
    stream.truncate()
    stream.write(decoder.arrays[node["at"]].tobytes().decode())
    stream.flush()


def _restore_mujoco_data(node: dict[str, Any], live: Any, decoder: Decoder) -> None:
    import mujoco

    found = mujoco.MjData.__new__(mujoco.MjData)
    found.__setstate__(zlib.decompress(decoder.arrays[node["at"]].tobytes()))
    # Into the live object: the renderer, and views of its arrays, hold that one
    mujoco.mj_copyData(live, live.model, found)


def _restore_mujoco_model(node: dict[str, Any], live: Any, decoder: Decoder) -> None:
    import mujoco

    data = zlib.decompress(decoder.arrays[node["at"]].tobytes())
    if data == live.__getstate__():
        return
    # Somebody changed it, for instance to vary the masses
    found = mujoco.MjModel.__new__(mujoco.MjModel)
    found.__setstate__(data)
    _copy_fields(found, live)
    for part in ("opt", "vis", "stat"):
        _copy_fields(getattr(found, part), getattr(live, part))
    if data != live.__getstate__():
        raise ValueError("the MuJoCo model is another than that of the run, in more than numbers")


def _copy_fields(source: Any, target: Any) -> None:
    for name in dir(source):
        value = None if name.startswith("_") else getattr(source, name)
        if isinstance(value, np.ndarray):
            if getattr(target, name).shape == value.shape:
                getattr(target, name)[...] = value
        elif isinstance(value, (int, float)) and getattr(target, name) != value:
            with suppress(AttributeError):  # sizes cannot be set; the comparison that follows sees them
                setattr(target, name, value)


def _restore_ale(node: dict[str, Any], live: Any, decoder: Decoder) -> None:
    state = type(live.cloneState())(decoder.arrays[node["at"]].tobytes())
    live.restoreState(state)


_RESTORE = {
    "space": _restore_space,
    "log file": _restore_log,
    "MjData": _restore_mujoco_data,
    "MjModel": _restore_mujoco_model,
    "ale": _restore_ale,
}


# --- A chain ---


def new_encoder() -> Encoder:
    """An encoder for environments."""
    return Encoder(encode_native, ignores)


def encode_environment(env: gym.Env, encoder: Encoder, path: str) -> Any:
    """
    Encode the state of an environment.

    :param env: An environment with its wrappers.
    :param encoder: Made by :func:`new_encoder`.
    :param path: Where it is, for errors.
    :return: Its state; where something cannot be kept the node of that layer says what, as ``"lost"``.
    """
    layers = layers_of(env)
    for index, layer in enumerate(layers):
        encoder.known(layer, {"$": "living", "name": f"{path}/{index}"})
    return [_encode_layer(layer, encoder, f"{path}/{index}") for index, layer in enumerate(layers)]


def _encode_layer(layer: gym.Env, encoder: Encoder, path: str) -> dict[str, Any]:
    node: dict[str, Any] = {"class": _class_name(layer)}
    try:
        with encoder.attempt():
            if _speaks_for_itself(layer):
                node["said"] = encoder.encode(getattr(layer, SAVE_METHOD)(), f"{path}.{SAVE_METHOD}()")
            else:
                node["attributes"] = encoder.attributes(layer, path, _OF_CHAIN)
    except CannotEncode as error:
        node["lost"] = str(error)
        node["generator"] = encoder.encode(getattr(layer, "_np_random", None), f"{path}._np_random")
    if isinstance(layer, Monitor):
        node["seconds"] = time.time() - layer.t_start
    return node


def lost(node: Any) -> list[str]:
    """
    Say what of an environment's state could not be kept.

    :param node: What :func:`encode_environment` gave.
    :return: What of the environment cannot be kept; empty if it goes on exactly.
    """
    return [layer["lost"] for layer in node if "lost" in layer]


def living(env: gym.Env, path: str) -> dict[str, Any]:
    """
    Find what references to an environment's layers stand for.

    :param env: An environment with its wrappers.
    :param path: As it was given to :func:`encode_environment`.
    :return: What references to its layers stand for.
    """
    return {f"{path}/{index}": layer for index, layer in enumerate(layers_of(env))}


def decode_environment(node: Any, env: gym.Env, decoder: Decoder) -> None:
    """
    Bring an environment to the state it was in, in place. One of which something was lost only gets its random generator
    back, and what its wrappers know; it has to be reset.

    :param node: What :func:`encode_environment` gave.
    :param env: An environment made in the same way.
    :param decoder: Has :func:`decode_native` and :func:`living`.
    :raises ValueError: If it is made of other wrappers.
    """
    layers = layers_of(env)
    names, expected = [_class_name(layer) for layer in layers], [layer["class"] for layer in node]
    if names != expected:
        raise ValueError(
            f"the environment must be made as it was: the run's is {_chain(expected)}, the one that was given is "
            f"{_chain(names)}"
        )
    # From the inside out, as a constructor would
    for layer, saved in reversed(list(zip(layers, node, strict=True))):
        if "lost" in saved:
            generator = decoder.decode(saved["generator"], getattr(layer, "_np_random", None))
            if generator is not None:
                layer._np_random = generator
        elif "said" in saved:
            getattr(layer, RESTORE_METHOD)(decoder.decode(saved["said"]))
        else:
            decoder.set_attributes(layer, saved["attributes"])
        if isinstance(layer, Monitor):
            # Its clock stood still while nothing was running
            layer.t_start = time.time() - saved["seconds"]
            layer.needs_reset |= bool(lost(node))


def _chain(names: list[str]) -> str:
    return " of ".join(name.partition(":")[2] for name in names)
