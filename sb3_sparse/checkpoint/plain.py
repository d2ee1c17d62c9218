"""
Values as data: JSON and arrays, no code. What goes in comes out, to the bit, with references that two places share.

A value that is no JSON value is an object whose key ``$`` says what it is. Objects written in Python are their class's name
and their attributes; no constructor, ``__setstate__`` or ``__reduce__`` is ever called.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import enum
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations
from torch import nn

from sb3_sparse.checkpoint.names import CannotEncode, Names, is_python_class, name_of
from sb3_sparse.utils.arrays import array_of

#: What lives: it is made anew by whoever goes on, and is no value.
_LIVING = (
    BaseAlgorithm,
    BaseBuffer,
    BaseCallback,
    KVWriter,
    Logger,
    VecEnv,
    gym.Env,
    nn.Module,
    nn.Parameter,
    th.optim.Optimizer,
    threading.Thread,
)
#: Of these a file that is not trusted may ask for an instance.
_HARMLESS = (
    ActionNoise,
    ConstantSchedule,
    FloatSchedule,
    LinearSchedule,
    RunningMeanStd,
    StackedObservations,
    spaces.Space,
)
_JSON_CONTAINERS = (list, dict)
#: A list of more numbers is kept as an array.
_LONG = 16


def kind_of(value: Any) -> str:
    """
    Say what a value is.

    :param value: A value.
    :return: Its class with its module; some classes of compiled modules have neither.
    """
    cls = type(value)
    return f"{getattr(cls, '__module__', '')}.{getattr(cls, '__qualname__', cls.__name__)}"


def attributes_of(value: Any) -> dict[str, Any]:
    """
    List the attributes of an object.

    :param value: An instance of a class written in Python.
    :return: Its attributes, those in slots included.
    """
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    return found


class Encoder:
    """
    Turns values into JSON and arrays.

    :param natives: Encodes values of other kinds: called with a value, its path and this encoder; returns what
        :meth:`encode` returns, or None if it does not know the value.
    :param ignores: Says of an attribute's value that nobody needs it.
    """

    def __init__(
        self,
        natives: Callable[[Any, str, Encoder], Any] | None = None,
        ignores: Callable[[Any], bool] | None = None,
    ) -> None:
        #: Arrays by name, as JSON refers to them.
        self.arrays: dict[str, np.ndarray] = {}
        self._natives = natives
        self.ignores = ignores or (lambda _: False)
        #: Values that were met, kept alive so that no id comes twice, and their nodes; how many of these are shared.
        self._met: dict[int, tuple[Any, Any]] = {}
        self._shared: dict[int, int] = {}
        #: Arrays of which others are views.
        self._bases: dict[int, np.ndarray] = {}

    def known(self, value: Any, node: Mapping[str, Any]) -> None:
        """
        Let a value be written as a reference from now on.

        :param value: What lives on the other side as well.
        :param node: What stands for it.
        """
        self._met[id(value)] = value, node

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Inside, an error takes everything back that was encoded since."""
        before = dict(self.arrays), dict(self._met), dict(self._shared), dict(self._bases)
        try:
            yield
        except CannotEncode:
            self.arrays, self._met, self._shared, self._bases = before
            raise

    def array(self, value: np.ndarray, path: str) -> str:
        """
        Put an array among the arrays of the state.

        :param value: An array of numbers.
        :param path: Where it is.
        :return: Its name among the arrays.
        """
        name = f"{len(self.arrays)}:{path}"
        self.arrays[name] = value
        return name

    def encode(self, value: Any, path: str) -> Any:
        """
        Encode a value.

        :param value: A value.
        :param path: Where it is, for errors and for the names of arrays.
        :return: What JSON can hold.
        :raises CannotEncode: For anything that lives, or is code, or is kept by something that is not Python.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self._met:
            node = self._met[id(value)][1]
            if isinstance(node, dict) and node.get("$") == "living":
                return node
            number = self._shared.setdefault(id(node), len(self._shared))
            return {"$": "same", "n": number}
        scalar = self._scalar(value, path)
        if scalar is not None:
            return scalar
        if isinstance(value, _LIVING):
            raise CannotEncode(path, f"a {type(value).__name__}")
        return self._composite(value, path)

    def _scalar(self, value: Any, path: str) -> Any:
        """Immutable values, None for all others."""
        if isinstance(value, enum.Enum):
            return {"$": "enum", "class": self._name(type(value), path), "name": value.name}
        if isinstance(value, (bytes, bytearray)):
            kind = type(value).__name__
            if len(value) > 256:
                return {"$": kind, "at": self.array(np.frombuffer(value, np.uint8), path)}
            return {"$": kind, "base64": base64.b64encode(value).decode()}
        if isinstance(value, np.generic):
            if isinstance(value, (np.bool_, np.integer, np.floating)) and value.dtype.itemsize <= 8:
                return {"$": "scalar", "dtype": value.dtype.str, "value": value.item()}
            return {"$": "scalar", "at": self.array(np.asarray(value), path)}
        if isinstance(value, complex):
            return {"$": "complex", "parts": [value.real, value.imag]}
        if isinstance(value, np.dtype) and value.names is None:
            return {"$": "numpy dtype", "name": value.str}
        if isinstance(value, (th.dtype, th.device)):
            return {"$": f"torch {type(value).__name__}", "name": str(value).removeprefix("torch.")}
        if isinstance(value, PurePath):
            return {"$": "path", "path": str(value)}
        if isinstance(value, (type, type(name_of))):
            return {"$": "name", "name": self._name(value, path)}
        return None

    @staticmethod
    def _name(value: Any, path: str) -> str:
        try:
            return name_of(value)
        except LookupError as error:
            raise CannotEncode(path, f"{value!r}, which cannot be imported in another process") from error

    def _composite(self, value: Any, path: str) -> Any:
        node: Any
        if type(value) is list and len(value) > _LONG and len(kinds := {type(item) for item in value}) == 1:
            # The returns of all episodes, for instance
            kind = kinds.pop()
            if kind is float or (kind is int and all(-(2**63) <= item < 2**63 for item in value)):
                node = {"$": "numbers", "at": self.array(np.array(value, np.float64 if kind is float else np.int64), path)}
                self._met[id(value)] = value, node
                return node
        if type(value) is list:
            node = []
            self._met[id(value)] = value, node
            node.extend(self.encode(item, f"{path}[{index}]") for index, item in enumerate(value))
            return node
        if type(value) is dict and all(type(key) is str and key != "$" for key in value):
            node = {}
            self._met[id(value)] = value, node
            node.update({key: self.encode(item, f"{path}.{key}") for key, item in value.items()})
            return node
        node = {}
        self._met[id(value)] = value, node
        node.update(self._tagged(value, path))
        return node

    def _tagged(self, value: Any, path: str) -> dict[str, Any]:
        if (native := self._natives(value, path, self) if self._natives is not None else None) is not None:
            return native
        for kinds, encode in _ENCODERS:
            if isinstance(value, kinds):
                return encode(self, value, path)
        if is_python_class(type(value)):
            return {"$": "object", "class": self._name(type(value), path), "attributes": self.attributes(value, path)}
        raise CannotEncode(path, f"a {kind_of(value)}")

    def attributes(self, value: Any, path: str, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        """
        Encode the attributes of an object.

        :param value: An instance of a class written in Python.
        :param path: Where it is.
        :param skip: Names of attributes that are left out.
        :return: Its attributes, encoded.
        :raises CannotEncode: As :meth:`encode`.
        """
        return {
            name: self.encode(item, f"{path}.{name}")
            for name, item in attributes_of(value).items()
            if name not in skip and not self.ignores(item)
        }

    def _array(self, value: np.ndarray, path: str) -> dict[str, Any]:
        if type(value) is not np.ndarray:
            raise CannotEncode(path, f"a {kind_of(value)}")
        if value.dtype.hasobject:
            items = [self.encode(item, f"{path}.flat[{index}]") for index, item in enumerate(value.flat)]
            return {"$": "objects", "shape": list(value.shape), "items": items}
        if isinstance(value.base, np.ndarray):
            self._bases[id(value.base)] = value.base
        if id(value.base) in self._met or id(value) in self._bases:
            # As copies they would no longer change together
            raise CannotEncode(path, "an array of which another is a view")
        return {"$": "array", "at": self.array(value, path)}

    def _tensor(self, value: th.Tensor, path: str) -> dict[str, Any]:
        if value.layout is not th.strided or value.is_quantized:
            raise CannotEncode(path, f"a {value.layout} tensor")
        plain = value.detach()
        node = {"$": "tensor", "dtype": str(plain.dtype).removeprefix("torch.")}
        if plain.dtype in (th.bfloat16,):
            plain = plain.view(th.int16)
        return {**node, "at": self.array(array_of(plain), path)}

    def _generator(self, value: np.random.Generator | np.random.RandomState, path: str) -> dict[str, Any]:
        if isinstance(value, np.random.RandomState):
            return {"$": "random state", "state": self.encode(value.get_state(legacy=False), path)}
        return {"$": "generator", "state": self.encode(value.bit_generator.state, path)}

    def _dict(self, value: dict, path: str) -> dict[str, Any]:
        node: dict[str, Any] = {}
        if isinstance(value, collections.defaultdict):
            node = {"$": "defaultdict", "factory": self.encode(value.default_factory, f"{path}.default_factory")}
        elif type(value) is dict:
            node = {"$": "dict"}
        elif type(value) is collections.OrderedDict:
            node = {"$": "OrderedDict"}
            if attributes := vars(value):
                # Such as a state dict's metadata
                node["attributes"] = {name: self.encode(item, f"{path}.{name}") for name, item in attributes.items()}
        else:
            raise CannotEncode(path, f"a {kind_of(value)}")
        pairs = [[self.encode(key, f"{path} (a key)"), self.encode(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return {**node, "items": pairs}

    def _tuple(self, value: tuple, path: str) -> dict[str, Any]:
        items = [self.encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
        if type(value) is tuple:
            return {"$": "tuple", "items": items}
        if hasattr(value, "_fields"):
            return {"$": "namedtuple", "class": self._name(type(value), path), "items": items}
        raise CannotEncode(path, f"a {kind_of(value)}")

    def _items(self, value: Any, path: str) -> dict[str, Any]:
        kind = type(value).__name__
        if type(value) not in (set, frozenset, collections.deque, range, slice):
            raise CannotEncode(path, f"a {kind_of(value)}")
        if isinstance(value, (range, slice)):
            return {"$": kind, "items": [value.start, value.stop, value.step]}
        node = {"$": kind, "items": [self.encode(item, f"{path}[{index}]") for index, item in enumerate(value)]}
        return {**node, "maxlen": value.maxlen} if isinstance(value, collections.deque) else node

    def _python_generator(self, value: random.Random, path: str) -> dict[str, Any]:
        if type(value) is not random.Random:
            raise CannotEncode(path, f"a {kind_of(value)}")
        return {"$": "random.Random", "state": self.encode(value.getstate(), path)}

    def _torch_generator(self, value: th.Generator, path: str) -> dict[str, Any]:
        if value.device.type != "cpu":
            raise CannotEncode(path, f"a torch.Generator on {value.device}")
        return {"$": "torch.Generator", "state": self.encode(value.get_state(), path)}

    def finish(self, tree: Any) -> Any:
        """
        Mark the values that several places share.

        :param tree: What :meth:`encode` gave, all of it.
        :return: The same with every value that several places share marked where it is.
        """
        if not self._shared or not isinstance(tree, _JSON_CONTAINERS):
            return tree
        number = self._shared.get(id(tree))
        if isinstance(tree, list):
            items = [self.finish(item) for item in tree]
            return items if number is None else {"$": "list", "items": items, "n": number}
        finished = {key: self.finish(item) for key, item in tree.items()}
        if number is None:
            return finished
        return {**finished, "n": number} if "$" in finished else {"$": "plain dict", "items": finished, "n": number}


_ENCODERS: list[tuple[Any, Callable[[Encoder, Any, str], dict[str, Any]]]] = [
    (np.ndarray, Encoder._array),
    (th.Tensor, Encoder._tensor),
    ((np.random.Generator, np.random.RandomState), Encoder._generator),
    (random.Random, Encoder._python_generator),
    (th.Generator, Encoder._torch_generator),
    (dict, Encoder._dict),
    (tuple, Encoder._tuple),
    ((set, frozenset, collections.deque, range, slice), Encoder._items),
]


class Decoder:
    """
    Turns JSON and arrays back into values; the other half of :class:`Encoder`.

    :param tree: What the encoder finished.
    :param arrays: Arrays by name.
    :param names: Finds classes.
    :param natives: Decodes nodes of other kinds: called with a node, what is there already, and this decoder; returns
        :data:`NotImplemented` if it does not know the kind.
    :param living: What nodes of kind ``"living"`` stand for, by name.
    """

    def __init__(
        self,
        tree: Any,
        arrays: Mapping[str, np.ndarray],
        names: Names,
        natives: Callable[[dict[str, Any], Any, Decoder], Any] | None = None,
        living: Mapping[str, Any] | None = None,
    ) -> None:
        self.tree = tree
        self.arrays = arrays
        self.names = names
        self._natives = natives
        self._living = living or {}
        self._nodes: dict[int, Any] = {}
        self._made: dict[int, Any] = {}
        self._index(tree)

    def _index(self, node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                self._index(item)
        elif isinstance(node, dict):
            if "$" in node and "n" in node and node["$"] != "same":
                self._nodes[node["n"]] = node
            for item in node.values():
                self._index(item)

    def decode(self, node: Any, live: Any = None) -> Any:
        """
        Decode a node.

        :param node: A node of the tree.
        :param live: What stands in its place now. Generators, tensors and objects of the same class are changed in place,
            so that whoever holds them sees it.
        :return: The value.
        :raises ValueError: For names that cannot or must not be found, and for nodes of no known kind.
        """
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$" not in node:
            return {key: self.decode(item) for key, item in node.items()}
        if node["$"] == "same":
            number = node["n"]
            return self._made[number] if number in self._made else self.decode(self._nodes[number], live)
        if node["$"] == "living":
            return self._living[node["name"]]
        if "n" in node and node["n"] in self._made:
            return self._made[node["n"]]
        value = self._tagged(node, live)
        self._remember(node, value)
        return value

    def _remember(self, node: Mapping[str, Any], value: Any) -> None:
        if "n" in node:
            self._made[node["n"]] = value

    def _tagged(self, node: dict[str, Any], live: Any) -> Any:
        if self._natives is not None and (native := self._natives(node, live, self)) is not NotImplemented:
            return native
        decode = _DECODERS.get(node["$"])
        if decode is None:
            raise ValueError(f"{node['$']!r} is no kind of value that this version knows")
        return decode(self, node, live)

    # --- Kinds ---

    def _enum(self, node: Any, live: Any) -> Any:
        return self.names.find(node["class"], enum.Enum)[node["name"]]

    def _bytes(self, node: Any, live: Any) -> Any:
        data = self.arrays[node["at"]].tobytes() if "at" in node else base64.b64decode(node["base64"])
        return bytearray(data) if node["$"] == "bytearray" else data

    def _scalar(self, node: Any, live: Any) -> Any:
        if "at" in node:
            return self.arrays[node["at"]][()]
        return np.dtype(node["dtype"]).type(node["value"])

    def _name(self, node: Any, live: Any) -> Any:
        return self.names.find(node["name"])

    def _array(self, node: Any, live: Any) -> np.ndarray:
        return np.array(self.arrays[node["at"]])

    def _objects(self, node: Any, live: Any) -> np.ndarray:
        value = np.empty(len(node["items"]), dtype=object)
        for index, item in enumerate(node["items"]):
            value[index] = self.decode(item)
        return value.reshape(node["shape"])

    def _tensor(self, node: Any, live: Any) -> th.Tensor:
        # Of memory of its own, which is torch's: the kernels do not trust an array's, see array_of()
        plain, dtype = th.tensor(self.arrays[node["at"]]), getattr(th, node["dtype"])
        value = plain.view(dtype) if plain.dtype != dtype else plain
        if isinstance(live, th.Tensor) and live.shape == value.shape and live.dtype == value.dtype:
            with th.no_grad():
                return live.copy_(value)
        return value

    def _generator(self, node: Any, live: Any) -> Any:
        value: Any = live
        state = self.decode(node["state"])
        kind = state["bit_generator"]
        if node["$"] == "random state":
            value = live if isinstance(live, np.random.RandomState) else np.random.RandomState(0)
            value.set_state(state)
            return value
        if isinstance(live, np.random.Generator) and type(live.bit_generator).__name__ == kind:
            value = live
        elif kind in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
            value = np.random.Generator(getattr(np.random, kind)(0))
        else:
            raise ValueError(f"{kind!r} is no bit generator of NumPy's")
        value.bit_generator.state = state
        return value

    def _python_generator(self, node: Any, live: Any) -> random.Random:
        value = live if isinstance(live, random.Random) else random.Random()
        value.setstate(self.decode(node["state"]))
        return value

    def _torch_generator(self, node: Any, live: Any) -> th.Generator:
        value = live if isinstance(live, th.Generator) else th.Generator()
        value.set_state(self.decode(node["state"]))
        return value

    def _list(self, node: Any, live: Any) -> list:
        value: list[Any] = []
        self._remember(node, value)
        value.extend(self.decode(item) for item in node["items"])
        return value

    def _plain_dict(self, node: Any, live: Any) -> dict:
        value: dict[str, Any] = {}
        self._remember(node, value)
        value.update({key: self.decode(item) for key, item in node["items"].items()})
        return value

    def _dict(self, node: Any, live: Any) -> dict:
        value: dict[Any, Any] = {}
        if node["$"] == "OrderedDict":
            value = collections.OrderedDict()
        elif node["$"] == "defaultdict":
            value = collections.defaultdict(self.decode(node["factory"]))
        self._remember(node, value)
        value.update({self.decode(key): self.decode(item) for key, item in node["items"]})
        for name, item in node.get("attributes", {}).items():
            setattr(value, name, self.decode(item))
        return value

    def _tuple(self, node: Any, live: Any) -> tuple:
        items = tuple(self.decode(item) for item in node["items"])
        return items if node["$"] == "tuple" else tuple.__new__(self.names.find(node["class"], tuple), items)

    def _items(self, node: Any, live: Any) -> Any:
        kind = node["$"]
        if kind in ("range", "slice"):
            return {"range": range, "slice": slice}[kind](*node["items"])
        if kind != "deque":
            return {"set": set, "frozenset": frozenset}[kind](self.decode(item) for item in node["items"])
        value: collections.deque[Any] = collections.deque(maxlen=node["maxlen"])
        self._remember(node, value)
        value.extend(self.decode(item) for item in node["items"])
        return value

    def _object(self, node: Any, live: Any) -> Any:
        name, value = node["class"], live
        if live is None or f"{type(live).__module__}:{type(live).__qualname__}" != name:
            cls = self.names.find(name)
            harmless = issubclass(cls, _HARMLESS) or (name.startswith("sb3_sparse.") and dataclasses.is_dataclass(cls))
            if not is_python_class(cls) or not (harmless or self.names.may_make(name)):
                raise ValueError(f"{name!r} is no class of which a file may ask for an instance")
            value = object.__new__(cls)
        self._remember(node, value)
        self.set_attributes(value, node["attributes"])
        return value

    def set_attributes(self, value: Any, attributes: Mapping[str, Any]) -> None:
        """
        Give an object the attributes that were encoded.

        :param value: An object.
        :param attributes: What :meth:`Encoder.attributes` gave.
        """
        own = attributes_of(value)
        for name, node in attributes.items():
            # Past properties and frozen dataclasses: these are the attributes themselves
            object.__setattr__(value, name, self.decode(node, own.get(name)))


_DECODERS: dict[str, Callable[[Decoder, Any, Any], Any]] = {
    "enum": Decoder._enum,
    "bytes": Decoder._bytes,
    "bytearray": Decoder._bytes,
    "scalar": Decoder._scalar,
    "complex": lambda _, node, __: complex(*node["parts"]),
    "numpy dtype": lambda _, node, __: np.dtype(node["name"]),
    "torch dtype": lambda _, node, __: getattr(th, node["name"]),
    "torch device": lambda _, node, __: th.device(node["name"]),
    "path": lambda _, node, __: Path(node["path"]),
    "name": Decoder._name,
    "array": Decoder._array,
    "numbers": lambda decoder, node, _: decoder.arrays[node["at"]].tolist(),
    "objects": Decoder._objects,
    "tensor": Decoder._tensor,
    "generator": Decoder._generator,
    "random state": Decoder._generator,
    "random.Random": Decoder._python_generator,
    "torch.Generator": Decoder._torch_generator,
    "list": Decoder._list,
    "plain dict": Decoder._plain_dict,
    "dict": Decoder._dict,
    "OrderedDict": Decoder._dict,
    "defaultdict": Decoder._dict,
    "tuple": Decoder._tuple,
    "namedtuple": Decoder._tuple,
    "set": Decoder._items,
    "frozenset": Decoder._items,
    "deque": Decoder._items,
    "range": Decoder._items,
    "slice": Decoder._items,
    "object": Decoder._object,
}


def fingerprint(value: Any, path: str = "") -> str | None:
    """
    Make a text by which values can be compared.

    :param value: A value.
    :param path: Where it is.
    :return: Text that is the same only for the same value, None if it cannot be encoded.
    """
    encoder = Encoder()
    try:
        tree = encoder.finish(encoder.encode(value, path))
    except CannotEncode:
        return None
    digest = hashlib.sha256(json.dumps(tree).encode())
    for array in encoder.arrays.values():
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
