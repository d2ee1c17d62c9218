"""
Sparse layers: the stock layer, its stock dense Parameter, exactly 0.0 where pruned, plus one boolean ``weight_mask`` buffer.

A layer guards its own weight: the gradient is masked inside ``backward()`` (so before any norm clipping sees it), and
whatever is loaded into it is projected onto its mask. Everything that involves an optimizer or a target network is the
:class:`~sb3_sparse.nn.sparsifier.Sparsifier`'s.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch as th
from torch import nn
from torch.autograd import forward_ad
from typing_extensions import Self

from sb3_sparse.masks.patterns import Pattern
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.utils.metadata import ENTRY, N_ACTIVE, hide, reveal


class _MaskGradient:
    """Gradient hook of one weight. It knows its layer weakly: a hook must not keep a network alive."""

    def __init__(self, layer: SparseLayer) -> None:
        self.layer = weakref.ref(layer)

    def __call__(self, weight: th.Tensor) -> None:
        # Runs once per weight and backward pass: keep it lean. No no_grad() is needed, backward() runs without gradients;
        # where it builds a graph (create_graph=True) the mask belongs into it
        waits = getattr(weight, "gradient_waits", None)  # a weight of the native engine's
        if waits is not None and waits():
            return
        layer = self.layer()
        if layer is None or weight.grad is None:
            return
        if layer.wants_dense_gradient:
            # Overwritten, never summed: the actor's loss comes by the critic's weights too, before the critic's own
            layer.dense_gradient = weight.grad.detach().clone()
        values = layer.mask_values
        if values is not None:
            weight.grad.mul_(values)


def _settle_first(layer: nn.Module, inputs: Any) -> None:
    """Forward pre-hook of target layers with masks of their own. A plain function, so that copies of a layer keep it."""
    assert isinstance(layer, SparseLayer)
    layer.settle()


def settles(hook: Callable[..., Any]) -> bool:
    """
    Tell the hook of target layers with masks of their own from those of others.

    :param hook: A forward pre-hook.
    :return: Whether it is that one.
    """
    return hook is _settle_first


def _in_the_open(layer: nn.Module, inputs: Any) -> None:
    """
    Forward pre-hook of quantized layers. It does nothing; that it is there keeps torch's fused kernels, which take a layer's
    weight and not its forward, from being chosen (``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` in evaluation).
    """


class LayerKeeper(Protocol):
    """Who is responsible for a layer."""

    def layer_loaded(self, layer: SparseLayer) -> None:
        """Be told that a state dict was loaded into the layer."""


class SparseLayer(nn.Module):
    """
    What :class:`SparseLinear` and :class:`SparseConv2d` share. Made from a stock layer, in place, by :meth:`from_dense`.

    Buffer ``weight_mask``: bool, shape of ``weight``; True = the weight exists. It travels beside the keys of the state dict,
    see :mod:`sb3_sparse.nn.state_dict`. ``mask_values`` is a cache in
    the weight's dtype and on its device (multiplying by it is several times faster than filling by a boolean mask), and
    None while every weight exists, so that a dense layer costs nothing.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_mask: th.Tensor
    mask_values: th.Tensor | None
    #: Counts the masks the layer has had; not those on which the native engine lets it settle.
    mask_version: int = 0
    #: Set in a layer of a target network that keeps its own largest weights instead of following the online mask.
    own_pattern: Pattern | None
    #: Whether ``backward()`` leaves the gradient, as it was before masking, in ``dense_gradient``.
    wants_dense_gradient: bool
    dense_gradient: th.Tensor | None
    #: Set, and only then a submodule, while the layer is quantized; see :meth:`set_quantizer`.
    quantizer: Quantizer | None
    #: Whether its forward has run while it is quantized, for whoever wants to know and sets it to False before.
    ran: bool = False
    #: Who wants to know when something was loaded into the layer, by whichever module; weakly, a layer keeps nobody alive.
    keeper: weakref.ref[LayerKeeper] | None = None

    @classmethod
    def from_dense(cls, layer: nn.Module) -> Self:
        """
        Turn a stock layer into a sparse one whose mask is all True. The object stays the same, so do its Parameters:
        whoever holds the layer or its weights (a container, an optimizer, a target copy) need not be told.

        :param layer: A stock layer of exactly the class that ``cls`` extends.
        :return: The same object.
        """
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.register_buffer("weight_mask", th.ones_like(layer.weight, dtype=th.bool))
        layer.register_buffer("mask_values", None, persistent=False)
        layer.wants_dense_gradient, layer.dense_gradient = False, None
        layer.own_pattern = None
        layer.quantizer = None
        layer.refresh()
        return layer

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        Run the stock layer's pass, or what its quantizer makes of it.

        :param input: As for the stock layer.
        :return: As from the stock layer.
        :raises RuntimeError: For a quantized layer under ``torch.func`` and forward-mode derivatives.
        """
        if self.quantizer is None:
            return super().forward(input)
        if th._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
            raise RuntimeError(
                "torch.func (vmap, grad, jvp, ...) and forward-mode derivatives do not go through quantized layers, whose "
                "rounding has a derivative for backward() alone: to_stock(model, bake_quantization=True) has none"
            )
        self.ran = True
        if input.is_nested:
            # Sequences of several lengths in one, as torch's TransformerEncoder makes them
            return th.nested.as_nested_tensor([self.forward(part) for part in input.unbind()])
        if self.training and th.is_grad_enabled():
            self.quantizer.observe(input)
        return self.quantizer(self, input) if self.quantizer.is_ready else super().forward(input)

    @property
    def weight_bits(self) -> int:
        """Bits of a weight: 32, or fewer where the layer is quantized."""
        return 32 if self.quantizer is None else self.quantizer.weight_bits

    def set_quantizer(self, quantizer: Quantizer | None) -> None:
        """
        Quantize the layer, or make it a float layer again.

        :param quantizer: How to quantize the layer from now on; None: not at all.
        """
        # While there is none, it is a plain attribute: found faster than a submodule, and not in the layer's repr
        del self.quantizer
        self.quantizer = quantizer
        self._set_pre_hook(_in_the_open, quantizer is not None)

    def replace_mask(self, mask: th.Tensor) -> None:
        """
        Give the layer another mask: weights and gradients outside of it become exactly 0.0, those inside stay as they are.

        :param mask: Bool, shape of ``weight``. Copied.
        """
        if self.own_pattern is not None:
            _ = self.weight.grad  # the native engine's may still wait, and is to be masked as it was made
        self.weight_mask.copy_(mask)
        self.refresh()

    def refresh(self) -> None:
        """Bring everything that follows from ``weight_mask`` up to date: cache, count, weight, gradient and its hook."""
        #: How many positions exist.
        self.n_active = int(self.weight_mask.sum())
        self.mask_version += 1
        full = self.n_active == self.weight.numel()
        self.mask_values = None if full else self.weight_mask.to(self.weight)
        self.project()
        hooked = self.__dict__.get("_hooked_weight")
        if hooked is None or hooked() is not self.weight:
            # torch hooks no frozen weight, but a hook stays with one that is frozen later, and this one may thaw
            trained = self.weight.requires_grad
            self.weight.requires_grad_(True).register_post_accumulate_grad_hook(_MaskGradient(self))
            self.weight.requires_grad_(trained)
            self._hooked_weight = weakref.ref(self.weight)

    @th.no_grad()
    def project(self) -> None:
        """Set weight and gradient to 0.0 (never -0.0 or NaN) wherever the mask is False."""
        if self.mask_values is not None:
            pruned = ~self.weight_mask
            self.weight.masked_fill_(pruned, 0.0)
            if self.weight.grad is not None:
                self.weight.grad.masked_fill_(pruned, 0.0)

    def keep_own_mask(self, pattern: Pattern | None) -> None:
        """
        Let a layer of a target network have a mask of its own, or not.

        :param pattern: From now on keep the largest weights that this pattern allows, see :meth:`settle`; None: follow the
            online mask again.
        """
        self.own_pattern = pattern
        self.mask_version += 1  # what may be nonzero is another matter
        self._set_pre_hook(_settle_first, pattern is not None)

    def _set_pre_hook(self, hook: Callable[..., None], wanted: bool) -> None:
        for key, present in list(self._forward_pre_hooks.items()):
            if present is hook:
                del self._forward_pre_hooks[key]
        if wanted:
            self.register_forward_pre_hook(hook)

    @th.no_grad()
    def settle(self) -> None:
        """
        Let a target layer that has a mask of its own keep its largest weights, as many as it had. Polyak averaging calls no
        hook, so this happens whenever the layer is read: before a forward pass and before it is saved.
        """
        if self.own_pattern is not None and bool(((self.weight != 0) & ~self.weight_mask).any()):
            # Of equally small weights those that exist already stay
            scores = th.where(self.weight_mask, self.weight.abs().clamp_min(1e-37), self.weight.abs())
            self.replace_mask(self.own_pattern.select(scores, self.own_pattern.budget_of(self.weight_mask)))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        hide(destination, prefix, {"weight_mask": destination.pop(f"{prefix}weight_mask"), N_ACTIVE: self.n_active})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        of_sparse = f"{prefix}weight_mask" in state_dict or ENTRY in local_metadata
        reveal(state_dict, prefix, local_metadata)
        quantized = f"{prefix}quantizer.low" in state_dict
        if of_sparse and f"{prefix}weight" in state_dict and quantized != (self.quantizer is not None):
            self.set_quantizer(Quantizer().to(self.weight.device) if quantized else None)
        state_dict.setdefault(f"{prefix}weight_mask", self.weight_mask)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self.refresh()
        keeper = self.keeper() if self.keeper is not None else None
        if keeper is not None:
            keeper.layer_loaded(self)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()  # a copy is projected on the mask
        # A copy has a weight of its own, and torch copies no hooks; nobody has asked the copy for gradients
        state = {**self.__dict__, "wants_dense_gradient": False, "dense_gradient": None}
        state.pop("_hooked_weight", None)
        state.pop("keeper", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.refresh()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={1 - self.n_active / self.weight.numel():.4f}"


class SparseLinear(SparseLayer, nn.Linear):  # type: ignore[misc]  # stock annotates `weight` as a Tensor
    """``nn.Linear`` with a mask."""


class SparseConv2d(SparseLayer, nn.Conv2d):  # type: ignore[misc]
    """``nn.Conv2d`` with a mask."""


#: Which sparse class extends which stock class. Subclasses of the stock classes have a forward of their own and stay dense.
SPARSE_CLASSES: dict[type[nn.Module], type[SparseLayer]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
