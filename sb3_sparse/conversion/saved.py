"""From a sparse policy to an ordinary one, and what all conversions share: they rewrite what a model would save."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_sparse.conversion.loading import load_without_buffer, read_zip
from sb3_sparse.conversion.untrusted import read_untrusted
from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.utils.metadata import emptied
from sb3_sparse.utils.randomness import undisturbed_randomness

Model = TypeVar("Model", bound=BaseAlgorithm)

MASK_SUFFIX = ".weight_mask"
QUANTIZER_PART = ".quantizer."
SPARSIFIER_PREFIX = "sparsifier."
UPDATER_PREFIX = f"{SPARSIFIER_PREFIX}updater_state."


@dataclass
class Saved:
    """
    What a model saves, to be rewritten and loaded again.

    :param data: Attributes of the model: policy class, ``policy_kwargs``, hyperparameters, counters.
    :param params: State dicts of the policy (``"policy"``; masks and the like are among its keys here) and of the optimizers.
    :param variables: Other tensors, such as SAC's log of the entropy coefficient.
    """

    data: dict[str, Any]
    params: dict[str, Any]
    variables: dict[str, Any] | None

    @classmethod
    def of(cls, model: BaseAlgorithm) -> Saved:
        """
        Save a model, in memory.

        :param model: A model. Not changed.
        :return: What it would save, on its device.
        """
        file = io.BytesIO()
        model.save(file)
        file.seek(0)
        data, params, variables = load_from_zip_file(file, device=model.device)
        assert data is not None
        return cls._made_of(data, params, variables)

    @classmethod
    def read(cls, path: Path, *, allow_pickle: bool = True) -> Saved:
        """
        Read a file.

        :param path: A model's zip.
        :param allow_pickle: Whether it is unpickled, as by ``load``: then it must be trusted.
        :return: What is in it, on the CPU.
        :raises ValueError: If it is damaged, naming the entry, or something of it can only be unpickled and must not.
        """
        if allow_pickle:
            return cls._made_of(*read_zip(path))
        read = read_untrusted(path)
        if read.left_out:
            said = "; ".join(f"`{name}` ({what})" for name, what in read.left_out.items())
            raise ValueError(
                f"{path} holds what only running its pickles would give, and a new file without it would be another: {said}. "
                "If you trust whoever made the file, allow it: `--allow-pickle`"
            )
        return cls._made_of(read.data, read.params, read.variables)

    @classmethod
    def _made_of(cls, data: dict[str, Any], params: Mapping[str, Any], variables: dict[str, Any] | None) -> Saved:
        return cls(data, {**params, "policy": emptied(params["policy"])}, variables)

    def use_policy(self, policy_class: type, sparse_kwargs: Mapping[str, Any]) -> None:
        """
        Choose another policy class.

        :param policy_class: The policy class from now on.
        :param sparse_kwargs: Its sparse ``policy_kwargs``, in place of those there were.
        """
        stock_kwargs = {
            name: value for name, value in self.data["policy_kwargs"].items() if name not in SparsityConfig.argument_names()
        }
        self.data["policy_class"] = policy_class
        self.data["policy_kwargs"] = {**stock_kwargs, **sparse_kwargs}

    def drop(self, *, masks: bool, prefix: str) -> None:
        """
        Drop entries of the policy's state dict.

        :param masks: Drop all masks of the policy.
        :param prefix: Drop what begins so.
        """
        policy = self.params["policy"]
        for name in list(policy):
            if (masks and name.endswith(MASK_SUFFIX)) or name.startswith(prefix):
                del policy[name]

    def load(self, algorithm: type[Model], **kwargs: Any) -> Model:
        """
        Load what was rewritten.

        :param algorithm: The algorithm.
        :param kwargs: Arguments of its ``load``.
        :return: A new model. Without an environment it has no ``HerReplayBuffer``, which cannot be made then.
        """
        file = io.BytesIO()
        save_to_zip_file(file, data=self.data, params=self.params, pytorch_variables=self.variables)
        file.seek(0)
        buffer_class = self.data.get("replay_buffer_class")
        if kwargs.get("env") is None and isinstance(buffer_class, type) and issubclass(buffer_class, HerReplayBuffer):
            return load_without_buffer(algorithm, file, **kwargs)
        return algorithm.load(file, **kwargs)

    def load_beside(self, model: Model, *, env: Any = None) -> Model:
        """
        Load for a model that lives on: random streams, global ones and those of the environment that both share, are left as
        they are.

        :param model: The model that was saved; the new one is on its device.
        :param env: Environment of the new model. None: that of ``model``.
        :return: A new model.
        """
        seed = self.data.get("seed")
        with undisturbed_randomness([model.device]):
            if seed is not None:
                th.default_generator.manual_seed(seed)  # as ``load`` does: default seeds of masks follow from it
            # With its seed it would seed the environment
            new = self.load(type(model), env=model.get_env() if env is None else env, device=model.device, seed=None)
        new.seed = seed
        return new
