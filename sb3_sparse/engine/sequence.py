"""A sequence of sparse layers and activations that runs as one native call each way, where the engine is to run it."""

from __future__ import annotations

import os
from threading import RLock
from typing import Any

import torch as th
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sb3_sparse.engine import native
from sb3_sparse.engine.autograd import run_native
from sb3_sparse.engine.choice import Choice
from sb3_sparse.engine.survivors import ACTIVATIONS, SUPPORTED_DTYPES, Survivors, can_read
from sb3_sparse.nn.layers import SparseLinear

#: Held while survivors are made: a sequence has one set of them, whichever thread comes first.
_making = RLock()


def _renew_lock() -> None:
    global _making
    _making = RLock()


if hasattr(os, "register_at_fork"):
    # Another thread may have held it when the process was forked
    os.register_at_fork(after_in_child=_renew_lock)


def _watched() -> bool:
    """Whether something wants to see torch's own operations: a trace, a transformation, a mode that overrides them."""
    return bool(
        th._C._get_tracing_state()
        or th._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or th._C._len_torch_dispatch_stack()
        or (th._C._len_torch_function_stack() and not _only_devices())
    )


def _only_devices() -> bool:
    """Whether the modes that override torch's functions are those of ``torch.set_default_device``, which say where."""
    return all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def _layers_of(modules: list[nn.Module]) -> tuple[list[SparseLinear], list[int]] | None:
    """Layers and the codes of what follows each, or None if a sequence is anything else."""
    layers: list[SparseLinear] = []
    activations: list[int] = []
    for module in modules:
        if type(module) is SparseLinear:
            layers.append(module)
            activations.append(0)
        elif type(module) in ACTIVATIONS and layers and activations[-1] == 0:
            activations[-1] = ACTIVATIONS[type(module)]
        else:
            return None
    return (layers, activations) if layers else None


class SparseSequential(nn.Sequential):
    """
    ``nn.Sequential`` of :class:`~sb3_sparse.nn.layers.SparseLinear` layers, ReLU and Tanh, made in place by :meth:`adopt`.

    The native kernels run it when the engine is to be used (see :class:`~sb3_sparse.engine.choice.Choice`) and the input is
    a float32 or float64 matrix on the CPU; torch runs it otherwise: while something hooks into it, traces or compiles it,
    while an updater wants dense gradients, where a target layer settles on a mask of its own, and once a layer is quantized.
    """

    layers: list[SparseLinear]
    #: Codes of what follows each layer.
    activations: list[int]
    #: None: a sequence that was not adopted, such as a slice of one; torch runs it.
    choice: Choice | None = None
    _survivors: dict[th.dtype, Survivors]
    _decided: dict[tuple[int, ...], bool]
    _hooks: list[dict[int, Any]]

    @staticmethod
    def adopt(sequence: nn.Sequential, choice: Choice) -> bool:
        """
        Turn a stock sequence into one that runs natively.

        :param sequence: A plain sequence, or one that is adopted already.
        :param choice: What decides on the engine.
        :return: Whether the sequence is one that the kernels can run; otherwise it is left as it is.
        """
        if type(sequence) not in (nn.Sequential, SparseSequential) or _layers_of(list(sequence)) is None:
            return False
        sequence.__class__ = SparseSequential
        assert isinstance(sequence, SparseSequential)
        sequence.choice = choice
        sequence._survivors, sequence._decided = {}, {}
        sequence._prepare()
        return True

    def _prepare(self) -> None:
        found = _layers_of(list(self))
        assert found is not None
        # Plain containers: the layers are registered as the sequence's children already
        self.__dict__["layers"], self.__dict__["activations"] = found
        hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        for module in (self, *self):
            hooks += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        self.__dict__["_hooks"] = hooks[0:2] + hooks[6:]

    def survivors(self) -> Survivors | None:
        """The survivors of the present masks and memory; made anew when they have changed, None if the kernels cannot."""
        survivors = self.present_survivors()
        if survivors is None:
            dtype = self.layers[0].weight.dtype
            with _making:
                survivors = self.present_survivors()
                if survivors is None and can_read(self.layers, dtype):
                    survivors = self._survivors[dtype] = Survivors(self.layers, self.activations)
        return survivors

    def present_survivors(self) -> Survivors | None:
        """The survivors of the present masks and memory, if they were made already."""
        survivors = self._survivors.get(self.layers[0].weight.dtype)
        return survivors if survivors is not None and survivors.fits() else None

    def forget_gradients(self) -> None:
        """Clear the gradients of all parameters."""
        for survivors in self._survivors.values():
            survivors.gradients.forget()

    def native_survivors(self, x: th.Tensor) -> Survivors | None:
        """
        Decide what runs a pass.

        :param x: Input.
        :return: The survivors that run it natively, None if torch is to run it.
        """
        # Comes before every pass: the cheap questions first, and none twice
        if self.choice is None or not self.choice.possible or type(x) is not th.Tensor or x.dim() != 2 or not x.is_cpu:
            return None
        dtype = x.dtype
        if dtype not in SUPPORTED_DTYPES:
            if self.choice.engine == "native":
                native.notice(f"engine='native' multiplies float32 and float64; torch multiplies {dtype}")
            return None
        for hooks in self._hooks:
            if hooks:
                return None
        for layer in self.layers:
            if layer.wants_dense_gradient or layer.own_pattern is not None or layer.quantizer is not None:
                return None
        if th.is_autocast_enabled("cpu") or _watched() or x.layout is not th.strided or x.is_neg():
            return None
        survivors = self._survivors.get(dtype)
        if survivors is None or not survivors.fits():
            if not can_read(self.layers, dtype):
                return None
            survivors = None
        n_samples = x.shape[0]
        key = (n_samples, th.get_num_threads(), *[layer.n_active for layer in self.layers])
        decided = self._decided.get(key)
        if decided is None:
            decided = self._decided[key] = n_samples > 0 and self.choice.is_native(self, n_samples)
        if not decided or x.shape[1] != self.layers[0].in_features:
            return None
        return survivors or self.survivors()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Run the sequence.

        :param x: Shape [n_samples, inputs].
        :return: Shape [n_samples, outputs].
        """
        if th.compiler.is_compiling():
            return super().forward(x)
        survivors = self.native_survivors(x)
        return super().forward(x) if survivors is None else run_native(self, survivors, x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_survivors": {}, "_decided": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.choice is not None:
            self._prepare()
