"""
The Parameters of a sequence that runs natively: stock Parameters, changed in place, which notice what they are asked for.

The dense Parameters stay the truth. What is kept beside them, surviving weights and gradients, has to follow every write,
and writes leave different traces: a version counter, memory that is shared, or none but the call that gave the memory away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch as th
from torch import nn

from sb3_sparse.engine.callers import detach, get_data, set_data

if TYPE_CHECKING:
    from sb3_sparse.engine.gradients import Gradients
    from sb3_sparse.engine.survivors import Survivors

# The getset descriptors
_plain_data: Any = th.Tensor.data
_plain_grad: Any = th.Tensor.grad
#: ``grad`` as torch has it: without gradients that are shown when somebody asks for them.
plain_grad: Callable[[th.Tensor], th.Tensor | None] = _plain_grad.__get__
set_plain_grad: Callable[[th.Tensor, th.Tensor | None], None] = _plain_grad.__set__


class LazyGradParameter(nn.Parameter):
    """A Parameter whose ``grad`` is computed when it is asked for."""

    gradients: Gradients | None = None
    #: Somebody was given other access to its memory, by which it may have been written to without a new version.
    aliased: bool = False

    @property
    def grad(self) -> th.Tensor | None:
        if self.gradients is not None and self.gradients.waiting:
            self.gradients.show()
        return plain_grad(self)

    @grad.setter
    def grad(self, value: th.Tensor | None) -> None:
        if self.gradients is not None and self.gradients.waiting:
            self.gradients.show()  # the other parameters keep theirs
        set_plain_grad(self, value)

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    data = property(_plain_data.__get__, set_data)
    detach = detach

    def show_gradient(self) -> None:
        """Let ``grad`` have what is kept beside it."""
        if self.gradients is not None and self.gradients.waiting:
            self.gradients.show()

    def gradient_waits(self) -> bool:
        """Whether all of its gradient is kept beside it, and shown when somebody asks for it."""
        return self.gradients is not None and self.gradients.waiting and plain_grad(self) is None

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        # A copied sequence keeps its own survivors and gradients, when it needs them
        if id(self) not in memo:
            with th.no_grad():
                memo[id(self)] = nn.Parameter(
                    th.Tensor.detach(self).clone(memory_format=th.preserve_format), self.requires_grad
                )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(th.Tensor.detach(self), self.requires_grad).__reduce_ex__(protocol)


class SurvivorParameter(LazyGradParameter):
    """A weight whose surviving values are kept beside it, see :class:`~sb3_sparse.engine.survivors.Survivors`."""

    survivors: Survivors | None = None
    #: Index of the layer among the survivors', and the memory that is read and written.
    place: int
    address: int
    #: Others have access to its memory, in a way that cannot be seen to end. ``aliased`` is set with it.
    always_aliased: bool = False
    #: What target updates are given as ``data``.
    averaged: Any = None
    #: Survivors of another weight and the two masks' versions, when the masks were last found to be the same.
    agreed: tuple[Any, int, int] | None = None

    data = property(get_data, set_data)

    def is_current(self) -> bool:
        """Whether the survivors are those of this weight as it is, and all else in it is zero."""
        survivors = self.survivors
        return (
            survivors is not None
            and survivors.weights[self.place] is self
            and survivors.knows(self.place)
            and survivors.made_of[self.place][1] == survivors.layers[self.place].mask_version
            and self.address == th.Tensor.data_ptr(self)
        )

    def has_mask_of(self, other: SurvivorParameter) -> bool:
        """
        Compare two masks.

        :param other: Another weight; both are current.
        :return: Whether both have the same survivors.
        """
        assert self.survivors is not None
        assert other.survivors is not None
        own, others = self.survivors.layers[self.place], other.survivors.layers[other.place]
        if own.own_pattern is not None or others.own_pattern is not None:
            return False  # what survives is more than the mask
        versions = (other.survivors, own.mask_version, others.mask_version)
        if self.agreed != versions:
            if not th.equal(own.weight_mask, others.weight_mask):
                return False
            self.agreed = versions
        return True


#: Methods and properties that give other tensors with the same memory. By ``data`` of these, or an array of them, a weight
#: can be written to without a new version.
_ALIASES = (
    *("detach_", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "__getitem__", "t", "transpose"),
    *("swapaxes", "swapdims", "permute", "movedim", "moveaxis", "narrow", "select", "chunk", "split", "unbind", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "as_strided", "diagonal", "unfold", "unflatten", "alias", "as_subclass", "hsplit"),
    *(
        "vsplit",
        "tensor_split",
        "split_with_sizes",
        "contiguous",
        "to",
        "float",
        "double",
        "cpu",
        "type",
        "type_as",
        "__iter__",
    ),
    *("positive", "real", "T", "mT", "H", "mH", "adjoint", "view_as_real", "resolve_conj", "resolve_neg"),
)
#: Those that give the memory itself.
_MEMORY = (
    "data_ptr",
    "untyped_storage",
    "storage",
    "_typed_storage",
    "numpy",
    "__array__",
    "__dlpack__",
    "set_",
    "share_memory_",
)


def _noticing(name: str, *, for_good: bool) -> Any:
    stock = getattr(th.Tensor, name)
    if not callable(stock):

        def value(self: SurvivorParameter) -> Any:
            self.aliased = True
            return stock.__get__(self)

        return property(value)

    @functools.wraps(stock)
    def method(self: SurvivorParameter, *args: Any, **kwargs: Any) -> Any:
        self.aliased, self.always_aliased = True, self.always_aliased or for_good
        return stock(self, *args, **kwargs)

    return method


for _name in (*_ALIASES, *_MEMORY):
    if hasattr(th.Tensor, _name):
        setattr(SurvivorParameter, _name, _noticing(_name, for_good=_name in _MEMORY))


def adopt(parameter: nn.Parameter, kind: type[LazyGradParameter]) -> None:
    """
    Turn a Parameter into another kind of Parameter, in place.

    :param parameter: A plain Parameter, or one that is adopted already.
    :param kind: The kind.
    """
    if type(parameter) is nn.Parameter:
        parameter.__class__ = kind
