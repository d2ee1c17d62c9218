"""
Values of the few kinds that Stable-Baselines3's files are made of, from what a pickle says
(:mod:`sb3_sparse.conversion.pickles`). Classes are looked up in a table of classes that are known, never by importing what a
file names; of everything else it is said that it cannot be read.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import sb3_contrib.common.maskable.buffers as maskable_buffers
import sb3_contrib.common.recurrent.buffers as recurrent_buffers
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from gymnasium import spaces
from stable_baselines3.common import noise, torch_layers, utils
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

import sb3_sparse.buffers as own_buffers
from sb3_sparse.conversion.pickles import Called, Named, Unreadable, read_pickle
from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.utils.old_paths import MOVED

#: Classes whose instances are their attributes: data, and other such instances.
_BY_ATTRIBUTES: tuple[type, ...] = (
    utils.ConstantSchedule,
    utils.FloatSchedule,
    utils.LinearSchedule,
    noise.NormalActionNoise,
    noise.OrnsteinUhlenbeckActionNoise,
    noise.VectorizedActionNoise,
)
#: The same of a package that may not be there: rl-zoo3's schedule ("lin_1e-3").
_OF_ZOO = ("rl_zoo3.utils", "SimpleLinearSchedule")
_DTYPE = re.compile(r"[biufc]\d{1,2}|bool|u?int\d{1,2}|float\d{1,2}")
_SCALARS = {name: getattr(np, name) for name in ("bool_", "float16", "float32", "float64")} | {
    f"{sign}int{bits}": getattr(np, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


@lru_cache(maxsize=1)
def known_classes() -> dict[str, type]:
    """
    List the classes that a file may name.

    :return: Classes that a file may name, by name: policies of the supported algorithms, activations, optimizers, features
        extractors, buffers.
    """
    from sb3_sparse.conversion.shrink import NarrowNatureCNN  # it reads files too

    found: list[type] = [HerReplayBuffer, NarrowNatureCNN, RMSpropTFLike]
    for policies in SPARSE_POLICIES.values():
        found += [cls for sparse in policies for cls in (sparse, sparse.stock_policy())]
    for module, base in (
        (th.nn.modules.activation, th.nn.Module),
        (th.optim, th.optim.Optimizer),
        (torch_layers, torch_layers.BaseFeaturesExtractor),
        *((one, sb3_buffers.BaseBuffer) for one in (sb3_buffers, own_buffers, recurrent_buffers, maskable_buffers)),
    ):
        found += [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base)]
    classes = {_name(cls): cls for cls in found}
    for cls in found:
        if cls.__module__.startswith("sb3_sparse."):
            # Names under which earlier releases saved them
            classes |= {f"sb3_sparse.{old}:{cls.__qualname__}": cls for old in ("policies", *MOVED)}
    scalars = {f"numpy:{name}": cls for name, cls in _SCALARS.items()}
    return {**classes, **scalars, **{f"builtins:{cls.__name__}": cls for cls in (bool, int, float, str)}}


class _Values:
    """Makes values; what is shared in the pickle is shared in the value."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def make(self, node: Any, path: str = "") -> Any:
        """
        Make a value of what a pickle says.

        :param node: What a pickle says.
        :param path: Where it is.
        :return: The value.
        :raises Unreadable: If it is of no kind that is known.
        """
        if node is None or isinstance(node, (bool, int, float, str, bytes, bytearray)):
            return node
        if id(node) not in self._made:
            # A part of itself is no plain value
            self._made[id(node)] = _IN_THE_MAKING
            self._made[id(node)] = self._make(node, path)
        value = self._made[id(node)]
        if value is _IN_THE_MAKING:
            raise Unreadable("a part of itself", path)
        return value

    def _make(self, node: Any, path: str) -> Any:
        if isinstance(node, dict):
            return self._dict(node.items(), path, {})
        if isinstance(node, (list, tuple, set, frozenset)):
            return type(node)(self.make(item, f"{path}[{index}]") for index, item in enumerate(node))
        if isinstance(node, Named):
            if node.full not in known_classes():
                raise Unreadable(f"{node.module}.{node.name}, no class that is known", path)
            return known_classes()[node.full]
        assert isinstance(node, Called)
        maker = _maker(_without_versions(node.full))
        if maker is None:
            what = f"made by {node.full.replace(':', '.')}" if node.full else "made by calls of calls"
            raise Unreadable(f"{what}, nothing that is known", path)
        try:
            return maker(self, node, path)
        except Unreadable:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, OverflowError) as error:
            raise Unreadable(f"no {node.full.rpartition(':')[2]} that can be made ({error})", path) from error

    def _dict(self, entries: Any, path: str, value: Any) -> Any:
        for key, item in entries:
            value[self.make(key, f"a key of {path or 'it'}")] = self.make(item, f"{path}.{key}" if path else str(key))
        return value

    def state(self, node: Called, path: str) -> dict[str, Any]:
        """What the pickle would set, values not yet made."""
        state = node.state
        if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
            state = state[1]
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise Unreadable("an object whose state is no dictionary", path)
        return state

    # --- Kinds ---

    def ordered_dict(self, node: Called, path: str) -> Any:
        given = self.make(node.arguments, path)
        return self._dict(node.entries, path, OrderedDict(*given))

    def deque(self, node: Called, path: str) -> Any:
        value: deque[Any] = deque(*self.make(node.arguments, path))
        value.extend(self.make(item, f"{path}[{index}]") for index, item in enumerate(node.items))
        return value

    def dtype(self, node: Called, path: str) -> np.dtype:
        text = node.arguments[0]
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise Unreadable(f"the dtype {text!r}", path)
        order = node.state[1] if isinstance(node.state, tuple) else "="
        return np.dtype(text).newbyteorder(">" if order == ">" else "<" if order == "<" else "=")

    def from_buffer(self, node: Called, path: str) -> np.ndarray:
        data, dtype, shape, order = self.make(node.arguments, path)
        return self._array(data, dtype, shape, order)

    def reconstructed(self, node: Called, path: str) -> np.ndarray:
        _, shape, dtype, is_fortran, data = self.make(node.state, path)
        return self._array(data, dtype, shape, "F" if is_fortran else "C")

    @staticmethod
    def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, np.dtype):
            raise Unreadable("an array that is no array of numbers")
        return np.frombuffer(data, dtype).reshape(shape, order=order).copy()

    def scalar(self, node: Called, path: str) -> Any:
        dtype, data = self.make(node.arguments, path)
        return self._array(data, dtype, (1,), "C")[0]

    def frequency(self, node: Called, path: str) -> TrainFreq:
        n, unit = self.make(node.arguments, path)
        if not isinstance(n, int) or not isinstance(unit, TrainFrequencyUnit):
            raise Unreadable("no training frequency", path)
        return TrainFreq(n, unit)

    def frequency_unit(self, node: Called, path: str) -> TrainFrequencyUnit:
        return TrainFrequencyUnit(*self.make(node.arguments, path))

    def goal_strategy(self, node: Called, path: str) -> GoalSelectionStrategy:
        return GoalSelectionStrategy(*self.make(node.arguments, path))

    def space(self, node: Called, path: str) -> spaces.Space:
        # Of the state only what says which space it is: its generator begins anew
        kind = node.full.rpartition(":")[2]
        state = self.state(node, path)
        if kind == "Dict":
            parts = self.make(state["spaces"], f"{path}.spaces" if path else "spaces")
            return spaces.Dict(_only_spaces(dict(parts)))
        if kind == "Tuple":
            parts = self.make(state["spaces"], f"{path}.spaces" if path else "spaces")
            return spaces.Tuple(tuple(_only_spaces(dict(enumerate(parts))).values()))
        given: dict[str, Any] = {}
        for name in ("low", "high", "n", "nvec", "start", "dtype"):
            if name in state:
                given[name] = self.make(state[name], name)
        if kind == "Box":
            shape = self.make(state["_shape"], "_shape")
            return spaces.Box(given["low"], given["high"], shape, given["dtype"])
        if kind == "MultiBinary":
            return spaces.MultiBinary(given["n"])
        size = "nvec" if kind == "MultiDiscrete" else "n"
        keywords = {"start": given["start"]} if "start" in given else {}
        cls: Any = spaces.MultiDiscrete if kind == "MultiDiscrete" else spaces.Discrete
        return cls(given[size], **keywords)


_IN_THE_MAKING = object()


def _only_spaces(parts: dict[Any, Any]) -> dict[Any, spaces.Space]:
    if not all(isinstance(part, spaces.Space) for part in parts.values()):
        raise Unreadable("a space of something else than spaces")
    return parts


def _without_versions(name: str) -> str:
    """NumPy's and Gymnasium's modules have moved; what is in them has not."""
    return name.replace("numpy.core.", "numpy._core.").replace("gym.spaces.", "gymnasium.spaces.")


def _by_attributes(cls: type) -> Callable[[_Values, Called, str], Any]:
    def make(values: _Values, node: Called, path: str) -> Any:
        value: Any = object.__new__(cls)
        for name, item in values.state(node, path).items():
            if not name.isidentifier() or name.startswith("__") or hasattr(cls, name):
                raise Unreadable(f"a {cls.__name__} with an attribute {name!r}", path)
            object.__setattr__(value, name, values.make(item, f"{path}.{name}" if path else name))
        return value

    return make


def _maker(name: str) -> Callable[[_Values, Called, str], Any] | None:
    if name == ":".join(_OF_ZOO):
        with suppress(ImportError):
            # These names, not the file's
            return _by_attributes(getattr(import_module(_OF_ZOO[0]), _OF_ZOO[1]))
    return _MAKERS.get(name)


_MAKERS: dict[str, Callable[[_Values, Called, str], Any]] = {
    "collections:OrderedDict": _Values.ordered_dict,
    "collections:deque": _Values.deque,
    "numpy:dtype": _Values.dtype,
    "numpy._core.numeric:_frombuffer": _Values.from_buffer,
    "numpy._core.multiarray:_reconstruct": _Values.reconstructed,
    "numpy._core.multiarray:scalar": _Values.scalar,
    **{
        f"gymnasium.spaces.{module}:{name}": _Values.space
        for module, name in (
            ("box", "Box"),
            ("dict", "Dict"),
            ("discrete", "Discrete"),
            ("multi_binary", "MultiBinary"),
            ("multi_discrete", "MultiDiscrete"),
            ("tuple", "Tuple"),
        )
    },
    _name(TrainFreq): _Values.frequency,
    _name(TrainFrequencyUnit): _Values.frequency_unit,
    _name(GoalSelectionStrategy): _Values.goal_strategy,
    **{_name(cls): _by_attributes(cls) for cls in _BY_ATTRIBUTES},
}


def plain_value(data: bytes) -> Any:
    """
    The value of a pickle, if it is of plain kinds.

    :param data: A pickle.
    :return: The value. Nothing that the pickle names has been imported or called.
    :raises Unreadable: If it is, or holds, something of no kind that is known, saying what and where.
    """
    try:
        return _Values().make(read_pickle(data))
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
