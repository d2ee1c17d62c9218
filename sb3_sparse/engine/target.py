"""
Target updates over survivors.

Stable-Baselines3's ``polyak_update`` writes ``target.data.mul_(1 - tau)`` and then ``th.add(target.data, online.data,
alpha=tau, out=target.data)``: two passes over dense memory. Both are the identity on zeros, so a Parameter that knows its
survivors can do them on those alone, with the same result. It does so where that function asks for its ``data``; everybody
else gets torch's own.
"""

from __future__ import annotations

import sys
import weakref
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch as th
from torch import nn

if TYPE_CHECKING:
    from sb3_sparse.engine.mirror import Mirror

#: Code of the functions that are given data which knows its survivors; they use it for ``mul_`` and ``th.add`` alone.
TARGET_UPDATES: set[CodeType] = set()

# The getset descriptors
_plain_data: Any = th.Tensor.data
_plain_grad: Any = th.Tensor.grad
#: ``grad`` as torch has it: without what a mirror has not shown yet.
plain_grad: Any = _plain_grad.__get__


class SurvivorParameter(nn.Parameter):
    """
    A weight with a :class:`~sb3_sparse.engine.mirror.Mirror`. ``data`` is the one way to write to a tensor that leaves no
    trace in its version counter; here it leaves one. ``grad`` is made dense when it is asked for.
    """

    mirror: Mirror | None
    #: Index of the layer in the mirror, and the memory that the mirror reads and writes.
    place: int
    address: int
    #: Somebody may hold memory of this weight that is written to unseen.
    exposed: bool

    @classmethod
    def adopt(cls, weight: nn.Parameter) -> None:
        """
        Turn a Parameter into a :class:`SurvivorParameter`, in place.

        :param weight: A plain Parameter, or one that is adopted already.
        """
        if type(weight) is nn.Parameter:
            weight.__class__ = cls
            assert isinstance(weight, cls)
            weight.mirror, weight.exposed, weight.held_data, weight.agreed = None, False, None, None

    #: What ``data`` gave last.
    held_data: _Data | None
    held_address: int
    #: Mirror of another weight and the two masks' versions, when the masks were last found to be the same.
    agreed: tuple[Any, int, int] | None

    @property
    def data(self) -> th.Tensor:
        if self.mirror is None:
            return _plain_data.__get__(self)
        if sys._getframe(1).f_code not in TARGET_UPDATES:
            self.exposed = True
            return _plain_data.__get__(self)
        view = self.held_data
        if view is None or self.held_address != self.data_ptr():
            view = self.held_data = _plain_data.__get__(self).as_subclass(_Data)
            view.owner, self.held_address = weakref.ref(self), self.data_ptr()
        return view

    @data.setter
    def data(self, value: th.Tensor) -> None:
        self.exposed, self.held_data = True, None
        _plain_data.__set__(self, value)

    @property
    def grad(self) -> th.Tensor | None:
        if self.mirror is not None and self.mirror.unseen:
            self.mirror.show_gradients()
        return plain_grad(self)

    @grad.setter
    def grad(self, value: th.Tensor | None) -> None:
        if self.mirror is not None and self.mirror.unseen:
            self.mirror.show_gradients()  # the other weights keep theirs
        _plain_grad.__set__(self, value)

    def gradient_waits(self) -> bool:
        """Whether all of its gradient is with the mirror, at survivors alone, and shown when somebody asks for it."""
        return self.mirror is not None and self.mirror.unseen and plain_grad(self) is None

    def is_mirrored(self) -> bool:
        """Whether the mirror holds this weight as it is."""
        mirror, index = self.mirror, self.place
        return (
            mirror is not None
            and not self.exposed
            and mirror.weights[index] is self
            and mirror.seen[index] == self._version
            and mirror.made_of[index][1] == mirror.layers[index].mask_version
            and self.address == self.data_ptr()
        )

    def has_mask_of(self, other: SurvivorParameter) -> bool:
        """
        :param other: Another weight; both are mirrored.
        :return: Whether both have the same survivors.
        """
        assert self.mirror is not None
        assert other.mirror is not None
        own, others = self.mirror.layers[self.place], other.mirror.layers[other.place]
        versions = (other.mirror, own.mask_version, others.mask_version)
        if self.agreed != versions:
            if not th.equal(own.weight_mask, others.weight_mask):
                return False
            self.agreed = versions
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        # Whoever copies a network gives it a mirror of its own when it needs one
        if id(self) not in memo:
            copy = nn.Parameter(self.detach().clone(memory_format=th.preserve_format), self.requires_grad)
            SurvivorParameter.adopt(copy)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self.detach(), self.requires_grad).__reduce_ex__(protocol)


class _Data(th.Tensor):
    """What ``SurvivorParameter.data`` gives to a target update: the plain tensor, which knows its survivors."""

    owner: weakref.ref[SurvivorParameter]
    #: Factor of a ``mul_`` that waits for its ``th.add``, which comes next: both are done at once.
    factor: float | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _mul_ and _can_wait(*args):
            args[0].factor = args[1]
            return args[0]
        kwargs = kwargs or {}
        if func is _add and _average_survivors(*args, **kwargs):
            return args[0]
        with th._C.DisableTorchFunctionSubclass():
            written = kwargs.get("out", args[0])
            if isinstance(written, _Data):
                if written.factor is not None:
                    written.mul_(written.factor)
                    written.factor = None
                if (owner := written.owner()) is not None and owner.mirror is not None:
                    owner.mirror.seen[owner.place] = -1
            return func(*args, **kwargs)


_mul_, _add = th.Tensor.mul_, th.add


def _can_wait(target: Any, factor: Any, *others: Any) -> bool:
    if others or type(target) is not _Data or type(factor) is not float:
        return False
    owner = target.owner()
    return owner is not None and owner.is_mirrored()


def _average_survivors(target: Any, online: Any, *others: Any, alpha: Any = 1, out: Any = None) -> bool:
    if others or out is not target or type(target) is not _Data or type(online) is not _Data or target.factor is None:
        return False
    to, source = target.owner(), online.owner()
    if to is None or source is None or not to.is_mirrored() or not source.is_mirrored() or not to.has_mask_of(source):
        return False
    assert to.mirror is not None
    assert source.mirror is not None
    to.mirror.network.average(to.place, target.factor, alpha, source.mirror.network, source.place)
    to.mirror.network.scatter_weight(to.place)
    target.factor = None
    return True
