""":func:`load_untrusted`: a model from a file that nobody vouches for. No pickle is run."""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.type_aliases import GymEnv

from sb3_sparse.conversion.loading import (
    algorithm_of,
    find_model_file,
    lacking,
    load_without_buffer,
    named_algorithm,
    naming_the_file,
    require_zip,
    unreadable,
)
from sb3_sparse.conversion.pickles import Unreadable
from sb3_sparse.conversion.plain_values import plain_value
from sb3_sparse.utils.randomness import devices_in_use, undisturbed_randomness

_PICKLED = ":serialized:"
#: Without these there is no model.
_NEEDED = ("policy_class", "observation_space", "action_space", "policy_kwargs")
#: What ``load`` computes from other attributes.
_DERIVED = frozenset({"lr_schedule", "exploration_schedule"})
#: A folder that a training would write to: not for a file to say.
_NOT_TAKEN = frozenset({"tensorboard_log"})
#: Tensors beside the state dicts that algorithms have.
_VARIABLES = frozenset({"log_ent_coef", "ent_coef_tensor"})


@dataclass(frozen=True)
class Untrusted:
    """
    What could be read of a file.

    :param data: Attributes of the model.
    :param params: State dicts.
    :param variables: Other tensors.
    :param left_out: What could not be read, and what it is.
    """

    data: dict[str, Any]
    params: dict[str, Any]
    variables: dict[str, Any] | None
    left_out: dict[str, str]


def read_untrusted(path: Path) -> Untrusted:
    """
    Read a model's zip without running what it carries.

    :param path: The zip.
    :return: What could be read of it, on the CPU.
    :raises ValueError: If it is no zip of Stable-Baselines3's, is damaged, or lacks what makes a model.
    """
    require_zip(path)
    left_out: dict[str, str] = {}
    params: dict[str, Any] = {}
    variables: dict[str, Any] | None = None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        missing = [name for name in ("data", "policy.pth") if name not in names]
        if missing:
            raise lacking(path, f"an entry {missing[0]!r}")
        data = _read_data(path, archive, left_out)
        for name in names:
            if not name.endswith(".pth"):
                continue
            try:
                found = th.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
            except Exception as error:
                raise ValueError(f"{path} is damaged: {unreadable(name, error)}") from error
            if not isinstance(found, dict):
                raise ValueError(f"{path} is damaged: its entry {name!r} holds no dictionary of tensors")
            if name in ("pytorch_variables.pth", "tensors.pth"):
                left_out |= {key: "no tensor that algorithms have" for key in found if key not in _VARIABLES}
                variables = {key: value for key, value in found.items() if key in _VARIABLES}
            else:
                params[name.removesuffix(".pth")] = found
    return Untrusted(data, params, variables, left_out)


def _read_data(path: Path, archive: zipfile.ZipFile, left_out: dict[str, str]) -> dict[str, Any]:
    """Attributes; what cannot be read goes into ``left_out``."""
    try:
        entries = json.loads(archive.read("data").decode())
        if not isinstance(entries, dict):
            raise ValueError("it is no dictionary")
    except (ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {unreadable('data', error)}") from error
    data: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in _DERIVED or name in _NOT_TAKEN:
            continue
        if not isinstance(entry, dict) or _PICKLED not in entry:
            data[name] = entry
            continue
        try:
            data[name] = plain_value(base64.b64decode(str(entry[_PICKLED])))
        except (Unreadable, binascii.Error) as error:
            left_out[name] = str(error)
    for name in _NEEDED:
        if name in left_out:
            raise ValueError(
                f"{path} cannot be read without running its pickles: `{name}` is pickled and {left_out[name]}. If you trust "
                "whoever made the file, load it with the algorithm's own `load`, or allow pickles: `--allow-pickle`"
            )
        if name not in data:
            raise lacking(path, f"a {name.replace('_', ' ')}")
    if not isinstance(data["policy_class"], type) or not isinstance(data["policy_kwargs"], dict):
        raise ValueError(f"{path} is not a model saved by Stable-Baselines3: it has no policy class")
    return data


def load_untrusted(
    path: str | Path,
    *,
    algorithm: str | None = None,
    env: GymEnv | str | None = None,
    device: th.device | str = "cpu",
) -> BaseAlgorithm:
    """
    Load a model from a file that nobody vouches for. A zip of Stable-Baselines3's carries pickles, and ``load`` runs what they
    say; this reads weights, masks, spaces, policy and hyperparameters without running anything::

        model = sb3_sparse.load_untrusted("from_somewhere.zip")

    A pickle is only looked at, and values are made of the few kinds of which Stable-Baselines3's files consist. What is of
    another kind (a learning rate that is a function, a callback that somebody hid in there) is left out, which is said in a
    warning, and is as the algorithm has it by default. Where a training writes its logs is never taken from the file.

    :param path: A model's zip, or a folder: the model saved there last.
    :param algorithm: rl-zoo3's name of the algorithm; found out from the file if left out.
    :param env: An environment to train in, or its id. Without one the model has no replay buffer.
    :param device: Where its networks shall be.
    :return: The model. Random streams are left alone.
    :raises ValueError: If the file is no model or damaged, or its policy or spaces are of no kind that is known.
    :raises FileNotFoundError: If there is no file.
    """
    file = find_model_file(path)
    named = named_algorithm(algorithm)
    read = read_untrusted(file)
    cls = named or algorithm_of(read.data, file)
    left_out = dict(read.left_out)
    for name in [name for name in read.data if hasattr(cls, name)]:
        del read.data[name]
        left_out[name] = f"in the place of a method of {cls.__name__}"
    # Stable-Baselines3's own load, of a file that has every attribute by name alone: it finds no pickle
    stream = io.BytesIO()
    save_to_zip_file(stream, data=dict.fromkeys(read.data), params=read.params, pytorch_variables=read.variables)
    stream.seek(0)
    kwargs: dict[str, Any] = {"custom_objects": read.data, "device": device}
    with undisturbed_randomness(devices_in_use()), naming_the_file(file, cls):
        if env is None:
            model = load_without_buffer(cls, stream, **kwargs)
        else:
            model = cls.load(stream, env=maybe_make_env(env, verbose=0), **kwargs)
    if left_out:
        said = "; ".join(f"`{name}` ({what})" for name, what in left_out.items())
        warnings.warn(
            f"{file}: left out, as it could only be had by running a pickle or does not belong there: {said}", stacklevel=2
        )
    return model
