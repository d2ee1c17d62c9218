"""The state of an algorithm: what SB3 saves of it, and what it leaves out."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from typing import Any

import cloudpickle
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, save_to_zip_file
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.checkpoint.environments import parts_of
from sb3_sparse.checkpoint.names import CannotEncode, name_of
from sb3_sparse.checkpoint.plain import Decoder, Encoder
from sb3_sparse.policies.base import policy_of
from sb3_sparse.utils.metadata import revealed

#: Attributes that SB3 leaves out, and that a rollout goes on from.
_LEFT_OUT = ("_last_lstm_states",)
#: Attributes that say when this process began: by them callbacks and logs tell one training from another.
_OF_TRAINING = ("start_time",)


def save_model(model: BaseAlgorithm, encoder: Encoder, *, allow_pickle: bool) -> tuple[dict[str, Any], list[str]]:
    """
    Save the state of an algorithm.

    :param model: An algorithm.
    :param encoder: Encodes its values.
    :param allow_pickle: Whether attributes that are no data (a learning rate that is a lambda, a policy class of the main
        script) may be pickled, as SB3 does with all it saves.
    :return: Its state, and the names of what was pickled.
    :raises ValueError: If something would have to be pickled and must not.
    """
    parameters, variables = model._get_torch_save_params()
    # As in BaseAlgorithm.save()
    left_out = {*model._excluded_save_params(), *_OF_TRAINING}
    left_out |= {name.partition(".")[0] for name in (*parameters, *variables)}
    data, pickled = {}, []
    for name, value in vars(model).items():
        if name in left_out:
            continue
        try:
            with encoder.attempt():
                data[name] = encoder.encode(value, f"model.{name}")
        except CannotEncode as error:
            if not allow_pickle:
                raise ValueError(
                    f"{error}, which a checkpoint can only hold pickled, and that was not allowed: define it in a module that "
                    "can be imported, or allow pickle"
                ) from error
            data[name] = {"$": "pickle", "base64": base64.b64encode(cloudpickle.dumps(value)).decode()}
            pickled.append(f"model.{name}")
    state = {
        "algorithm": name_of(type(model)),
        "data": data,
        "parameters": encoder.encode(model.get_parameters(), "parameters"),
        "variables": encoder.encode({name: recursive_getattr(model, name) for name in variables}, "variables"),
        "left out": {name: encoder.encode(getattr(model, name, None), f"model.{name}") for name in _LEFT_OUT},
        "device": str(model.device),
        "shares action space": model.env is not None and model.action_space is model.env.action_space,
    }
    distribution = _exploration(model)
    if distribution is not None:
        names = ("exploration_mat", "exploration_matrices")
        state["exploration"] = {name: encoder.encode(getattr(distribution, name, None), f"gSDE.{name}") for name in names}
    return state, pickled


def _exploration(model: BaseAlgorithm) -> Any:
    """The distribution whose matrices gSDE explores with, None without gSDE."""
    if not model.use_sde:
        return None
    actor: Any = getattr(model, "actor", None) or model.policy
    return actor.action_dist


def pickles_of(state: Mapping[str, Any]) -> list[str]:
    """
    List what of a model's state is pickled.

    :param state: What :func:`save_model` gave.
    :return: Names of attributes that are pickled.
    """
    return [name for name, node in state["data"].items() if isinstance(node, dict) and node.get("$") == "pickle"]


def make_model(
    state: Mapping[str, Any],
    decoder: Decoder,
    env: VecEnv,
    *,
    device: th.device | str | None,
    allow_pickle: bool,
) -> BaseAlgorithm:
    """
    Make the algorithm anew, as ``load`` does, its replay buffer empty.

    :param state: What :func:`save_model` gave.
    :param decoder: Decodes it.
    :param env: The environment.
    :param device: Where its networks shall be; None: where they were.
    :param allow_pickle: Whether what is pickled may be unpickled.
    :return: The algorithm.
    :raises ValueError: For pickles that are not allowed, and an environment of other spaces.
    """
    algorithm: type[BaseAlgorithm] = decoder.names.find(state["algorithm"], BaseAlgorithm)
    if (pickled := pickles_of(state)) and not allow_pickle:
        raise ValueError(f"{', '.join(pickled)} of the model is pickled in the checkpoint, which was not allowed")
    data = {}
    for name, node in state["data"].items():
        is_pickle = isinstance(node, dict) and node.get("$") == "pickle"
        data[name] = cloudpickle.loads(base64.b64decode(node["base64"])) if is_pickle else decoder.decode(node)
    if env.num_envs != data["n_envs"]:
        raise ValueError(f"the run has {data['n_envs']} environments, {env.num_envs} were given")
    # SB3's own load, of a file that has every attribute by name alone: no pickle is written or read
    file = io.BytesIO()
    params, variables = decoder.decode(state["parameters"]), decoder.decode(state["variables"])
    save_to_zip_file(file, data=dict.fromkeys(data), params=params, pytorch_variables=variables)
    file.seek(0)
    device = state["device"] if device is None else device
    with warnings.catch_warnings():
        # Of a buffer class that SB3 chose itself for these n steps
        warnings.filterwarnings("ignore", message="`n_steps=.*is ignored because a custom `replay_buffer_class`")
        model = algorithm.load(file, env=env, device=device, custom_objects=data, force_reset=False)
    if state["shares action space"]:
        # Who draws from one draws from the other
        assert model.env is not None
        model.action_space = model.env.action_space
    return model


def restore_moment(model: BaseAlgorithm, state: Mapping[str, Any], decoder: Decoder) -> None:
    """
    Bring back what ``learn()`` and the callbacks may have changed before the first rollout of a training that goes on.

    :param model: The algorithm that :func:`make_model` made.
    :param state: What :func:`save_model` gave.
    :param decoder: Decodes it.
    """
    data = state["data"]
    for name in ("_last_obs", "_last_original_obs", "_last_episode_starts"):
        setattr(model, name, decoder.decode(data[name]))
    for name in _LEFT_OUT:
        if hasattr(model, name):
            node = decoder.decode(state["left out"][name])
            setattr(model, name, _to_device(node, model.device))
    # Where the environment's space took its place, it was another one that drew
    _take_generators(model.action_space, decoder.decode(data["action_space"]))
    if model.action_noise is not None:
        # learn() has just reset it, and the rollout holds this object
        decoder.decode(data["action_noise"], model.action_noise)
    if "exploration" in state:
        distribution = _exploration(model)
        for name, node in state["exploration"].items():
            setattr(distribution, name, _to_device(decoder.decode(node), model.device))
    _set_tensors(model, decoder.decode(state["parameters"]))


def _take_generators(space: spaces.Space, saved: spaces.Space) -> None:
    space._np_random = saved._np_random
    for part, saved_part in zip(parts_of(space), parts_of(saved), strict=True):
        _take_generators(part, saved_part)


def _to_device(value: Any, device: th.device) -> Any:
    if isinstance(value, th.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        items = [_to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@th.no_grad()
def _set_tensors(model: BaseAlgorithm, parameters: Mapping[str, Any]) -> None:
    """
    Callbacks prepare themselves when a training starts, and may touch what they keep in the policy. In place: they hold these
    tensors.
    """
    present = revealed(policy_of(model).state_dict())
    for name, saved in revealed(parameters["policy"]).items():
        live = present.get(name)
        if isinstance(live, th.Tensor) and live.shape == saved.shape and not th.equal(live, saved.to(live.device)):
            live.copy_(saved)
