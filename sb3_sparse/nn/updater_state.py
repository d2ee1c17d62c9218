"""
What updaters remember over saves and loads: buffers of the policy, declared field by field.

An updater declares what it remembers of a network in a subclass of :class:`NetworkState`, one attribute each, and reads and
writes it there::

    class State(NetworkState):
        n_updates = Scalar[int](th.int64)
        shadow = PerLayer()

    state = State(sparsifier.updater_state, "actor", sparsifier.layers)
    state.n_updates = 3
    state.shadow["actor.mu.0"] = weight.clone()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar, overload

import torch as th
from torch import nn
from typing_extensions import Self

from sb3_sparse.nn.layers import SparseLayer

Value = TypeVar("Value")


class UpdaterState(nn.Module):
    """
    What updaters remember, as buffers made on demand, so that it is saved, loaded, moved and copied with the policy. Updaters
    read and write it through their own :class:`NetworkState`.
    """

    #: Counts the states that were loaded: whoever keeps something beside its state looks here.
    n_loads: int = 0

    @staticmethod
    def _buffer_name(network: str, key: str) -> str:
        return f"{network}/{key}".replace(".", "~")

    def get(self, network: str, key: str) -> th.Tensor | None:
        """
        Look up a value.

        :param network: Name of the network.
        :param key: Name of the value, e.g. ``"period"`` or ``"ever_active/actor.mu.0"``.
        :return: The value itself, not a copy, or None.
        """
        return self._buffers.get(self._buffer_name(network, key))

    def set(self, network: str, key: str, value: th.Tensor) -> None:
        """
        Keep a value.

        :param network: Name of the network.
        :param key: Name of the value.
        :param value: Kept as it is, not copied.
        """
        self.register_buffer(self._buffer_name(network, key), value)

    def keys_of(self, network: str, prefix: str) -> list[str]:
        """
        List the values of a network.

        :param network: Name of the network.
        :param prefix: Beginning of a name.
        :return: The rest of every name that begins so.
        """
        beginning = self._buffer_name(network, prefix)
        return [name[len(beginning) :] for name in self._buffers if name.startswith(beginning)]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # What is loaded is the whole state: nothing of the old one stays
        self._buffers.clear()
        self.n_loads += 1
        for key, value in state_dict.items():
            if key.startswith(prefix):
                self.register_buffer(key[len(prefix) :], value.clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


class Field:
    """
    One thing that an updater remembers of a network. Its buffer is named after the attribute.

    :param dtype: Dtype of the buffer; None: that of the layer's weight.
    :param key: Name of the buffer, where it is not the attribute's.
    """

    def __init__(self, dtype: th.dtype | None = None, *, key: str | None = None) -> None:
        self.dtype = dtype
        self.key = key or ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = self.key or name

    def breaches(self, state: NetworkState) -> Iterator[str]:
        """
        Compare stored values with what is declared.

        :param state: A network's state.
        :return: What of the stored values is not as declared, one line each.
        """
        raise NotImplementedError

    def _breach(self, key: str, value: th.Tensor | None, dtype: th.dtype, shape: tuple[int, ...]) -> Iterator[str]:
        if value is not None and (value.dtype != dtype or tuple(value.shape) != shape):
            yield f"{key!r} must be {dtype} of shape {shape}, it is {value.dtype} of shape {tuple(value.shape)}"


class Scalar(Field, Generic[Value]):
    """A number or a truth value of a network, None while there is none: ``state.n_updates = 3``."""

    @overload
    def __get__(self, state: None, owner: type) -> Self: ...

    @overload
    def __get__(self, state: NetworkState, owner: type) -> Value | None: ...

    def __get__(self, state: NetworkState | None, owner: type) -> Any:
        if state is None:
            return self
        value = state.store.get(state.network, self.key)
        return None if value is None else value.item()

    def __set__(self, state: NetworkState, value: Value) -> None:
        state.store.set(state.network, self.key, th.tensor(value, dtype=self.dtype))

    def breaches(self, state: NetworkState) -> Iterator[str]:
        """
        Compare the stored value with what is declared.

        :param state: A network's state.
        :return: What of the stored value is not as declared, one line each.
        """
        assert self.dtype is not None
        yield from self._breach(self.key, state.store.get(state.network, self.key), self.dtype, ())


class Numbers(Field):
    """A list of whole numbers of a network, None while there is none: ``state.counts = [3, 4]``. It may be empty."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__(th.int64, key=key)

    @overload
    def __get__(self, state: None, owner: type) -> Self: ...

    @overload
    def __get__(self, state: NetworkState, owner: type) -> list[int] | None: ...

    def __get__(self, state: NetworkState | None, owner: type) -> Any:
        if state is None:
            return self
        value = state.store.get(state.network, self.key)
        return None if value is None else value.tolist()

    def __set__(self, state: NetworkState, value: list[int]) -> None:
        state.store.set(state.network, self.key, th.tensor(value, dtype=th.int64))

    def breaches(self, state: NetworkState) -> Iterator[str]:
        """
        Compare the stored values with what is declared.

        :param state: A network's state.
        :return: What of the stored value is not as declared, one line each.
        """
        value = state.store.get(state.network, self.key)
        if value is not None:
            yield from self._breach(self.key, value, th.int64, (value.numel(),))


class LayerValues(Mapping[str, th.Tensor]):
    """The tensors of one :class:`PerLayer` field, by layer name: themselves, not copies."""

    def __init__(self, state: NetworkState, key: str) -> None:
        self._state, self._key = state, key

    def __getitem__(self, layer: str) -> th.Tensor:
        value = self._state.store.get(self._state.network, f"{self._key}/{layer}")
        if value is None:
            raise KeyError(layer)
        return value

    def __setitem__(self, layer: str, value: th.Tensor) -> None:
        self._state.store.set(self._state.network, f"{self._key}/{layer}", value)

    def __iter__(self) -> Iterator[str]:
        state = self._state
        return (name for name in state.layers if state.store.get(state.network, f"{self._key}/{name}") is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class PerLayer(Field):
    """A tensor for every layer, of the shape of its weight: ``state.shadow["actor.mu.0"] = weight.clone()``."""

    @overload
    def __get__(self, state: None, owner: type) -> Self: ...

    @overload
    def __get__(self, state: NetworkState, owner: type) -> LayerValues: ...

    def __get__(self, state: NetworkState | None, owner: type) -> Any:
        return self if state is None else LayerValues(state, self.key)

    def breaches(self, state: NetworkState) -> Iterator[str]:
        """
        Compare the stored tensors with what is declared.

        :param state: A network's state.
        :return: What of the stored tensors is not as declared, one line each.
        """
        for name, value in LayerValues(state, self.key).items():
            weight = state.layers[name].weight
            yield from self._breach(f"{self.key}/{name}", value, self.dtype or weight.dtype, tuple(weight.shape))


class MomentValues:
    """The tensors of one :class:`PerMoment` field, by layer name and name of the moment: themselves, not copies."""

    def __init__(self, state: NetworkState, key: str) -> None:
        self._state, self._key = state, key

    def get(self, layer: str, moment: str) -> th.Tensor | None:
        """
        Look up what is kept of a moment.

        :param layer: Name of the layer.
        :param moment: Name of the moment, as the optimizer calls it.
        :return: The tensor, or None.
        """
        return self._state.store.get(self._state.network, f"{self._key}/{layer}/{moment}")

    def set(self, layer: str, moment: str, value: th.Tensor) -> None:
        """
        Keep something of a moment.

        :param layer: Name of the layer.
        :param moment: Name of the moment, as the optimizer calls it.
        :param value: The tensor.
        """
        self._state.store.set(self._state.network, f"{self._key}/{layer}/{moment}", value)

    def of(self, layer: str) -> dict[str, th.Tensor]:
        """
        List what is kept of a layer.

        :param layer: Name of a layer.
        :return: All that is kept of it, by the moment's name.
        """
        keys = self._state.store.keys_of(self._state.network, f"{self._key}/{layer}/")
        return {moment: value for moment in keys if (value := self.get(layer, moment)) is not None}


class PerMoment(Field):
    """
    A tensor for every state that an optimizer keeps of every layer's weight: ``state.memory.get("actor.mu.0", "exp_avg")``.
    Shape of the weight, or a single number (a count of steps).
    """

    @overload
    def __get__(self, state: None, owner: type) -> Self: ...

    @overload
    def __get__(self, state: NetworkState, owner: type) -> MomentValues: ...

    def __get__(self, state: NetworkState | None, owner: type) -> Any:
        return self if state is None else MomentValues(state, self.key)

    def breaches(self, state: NetworkState) -> Iterator[str]:
        """
        Compare the stored tensors with what is declared.

        :param state: A network's state.
        :return: What of the stored tensors is not as declared, one line each.
        """
        for name, layer in state.layers.items():
            for moment, value in MomentValues(state, self.key).of(name).items():
                shape, dtype = tuple(layer.weight.shape), layer.weight.dtype
                if value.numel() != 1:
                    yield from self._breach(f"{self.key}/{name}/{moment}", value, dtype, shape)


class NetworkState:
    """
    What one updater remembers of one network: a view of the policy's buffers through the fields that a subclass declares.

    :param store: The policy's buffers.
    :param network: Name of the network.
    :param layers: The network's layers by name.
    """

    fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.fields = {**cls.fields, **{name: value for name, value in vars(cls).items() if isinstance(value, Field)}}

    def __init__(self, store: UpdaterState, network: str, layers: Mapping[str, SparseLayer]) -> None:
        self.store = store
        self.network = network
        self.layers = layers

    def check(self) -> None:
        """
        Compare what is stored, perhaps loaded from a file, with what the fields declare.

        :raises ValueError: Naming every value of another dtype or shape.
        """
        breaches = [breach for field in self.fields.values() for breach in field.breaches(self)]
        if breaches:
            raise ValueError(
                f"what an updater remembers of network {self.network!r} does not fit the network: {'; '.join(breaches)}"
            )


class TargetState(NetworkState):
    """What the sparsifier itself remembers of a network: whether its target keeps its own largest weights."""

    own_target = Scalar[bool](th.bool)
