"""A sequence of sparse layers and activations that runs as one native call each way, where the engine is to run it."""

from __future__ import annotations

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
from sb3_sparse.engine.locks import make_lock
from sb3_sparse.engine.settle import only_settle, settle, settles_natively
from sb3_sparse.engine.survivors import ACTIVATIONS, SUPPORTED_DTYPES, Survivors, can_read, n_surviving
from sb3_sparse.nn.layers import SparseLinear

#: Held while survivors are made: a sequence has one set of them, whichever thread comes first.
_making = make_lock()

_autocast, _traced, _transformed = th.is_autocast_enabled, th._C._get_tracing_state, th._C._functorch.maybe_current_level
_n_dispatch_modes, _n_function_modes = th._C._len_torch_dispatch_stack, th._C._len_torch_function_stack


def watched() -> bool:
    """Whether something wants to see torch's own operations: a trace, a transformation, a mode that overrides them."""
    return bool(
        _autocast("cpu")
        or _traced()
        or _transformed() is not None
        or forward_ad._current_level >= 0
        or _n_dispatch_modes()
        or (_n_function_modes() and not _only_devices())
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
    while an updater wants dense gradients, where a target layer has an N:M or block mask of its own, and once a layer is
    quantized.
    """

    layers: list[SparseLinear]
    #: Codes of what follows each layer.
    activations: list[int]
    #: None: a sequence that was not adopted, such as a slice of one; torch runs it.
    choice: Choice | None = None
    _survivors: dict[th.dtype, Survivors]
    _decided: dict[tuple[int, ...], bool]
    #: Its modules with their classes and attributes, as they were looked at last, and where hooks of them would be.
    _members: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]]
    _order: list[nn.Module]
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
        hooks: list[dict[int, Any]] = [
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks,
            torch_module._global_backward_pre_hooks,
        ]
        order = [*self._modules.values()]
        for module in order:
            hooks += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        layers, activations = _layers_of(order) or ([], [])
        # Plain containers: the layers are registered as the sequence's children already
        self.__dict__.update(
            layers=layers,
            activations=activations,
            _hooks=hooks,
            _order=order,
            _members=[(module, type(module), module.__dict__) for module in order],
        )

    def survivors(self) -> Survivors | None:
        """The survivors of the present masks and memory; made anew when they have changed, None if the kernels cannot."""
        self._settle()
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
        survivors = self._survivors.get(self.layers[0].weight.dtype) if self.layers else None
        return survivors if survivors is not None and survivors.fits() else None

    def forget_gradients(self) -> None:
        """Clear the gradients of all parameters."""
        for survivors in self._survivors.values():
            survivors.gradients.forget()

    def show_gradients(self) -> None:
        """Let all parameters have the gradients that wait."""
        for survivors in self._survivors.values():
            survivors.gradients.show()

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
        if (
            watched()
            or not self.is_plain()
            or self.wants_dense_gradients()
            or x.layout is not th.strided
            or x.is_neg()
            or x.shape[1] != self.layers[0].in_features
        ):
            return None
        self._settle()
        layers = self.layers
        survivors = self._survivors.get(dtype)
        key = (x.shape[0], th.get_num_threads())
        if survivors is None or not survivors.fits():
            if not can_read(layers, dtype) or not self._decide(key):
                return None
            return self.survivors()
        decided = survivors.decided.get(key)
        if decided is None:
            decided = survivors.decided[key] = self._decide(key)
        return survivors if decided else None

    def wants_dense_gradients(self) -> bool:
        """Whether an updater wants gradients that the kernels do not compute."""
        for layer in self.layers:  # noqa: SIM110, called before every pass
            if layer.wants_dense_gradient:
                return True
        return False

    def is_plain(self) -> bool:
        """Whether it is what the kernels compute, and nobody hooks into its passes."""
        if [*self._modules.values()] != self._order:
            self._prepare()
        layers = self.layers
        if not layers:
            return False
        for module, kind, attributes in self._members:
            if type(module) is not kind or "forward" in attributes:
                return False
        if any(self._hooks) and not only_settle(self._hooks):
            return False
        for layer in layers:
            if layer.quantizer is not None or (layer.own_pattern is not None and not settles_natively(layer)):
                return False
        return True

    def _settle(self) -> None:
        """Let target layers with masks of their own settle, whichever engine runs the pass then."""
        for layer in self.layers:
            if layer.own_pattern is not None:
                settle(layer)

    def _decide(self, batch: tuple[int, int]) -> bool:
        """Whether the kernels run a size of batch with a number of threads; decided once for each density."""
        key = (*batch, *[n_surviving(layer) for layer in self.layers])
        if key not in self._decided:
            assert self.choice is not None
            self._decided[key] = batch[0] > 0 and self.choice.is_native(self, batch[0])
        return self._decided[key]

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

    def train(self, mode: bool = True) -> SparseSequential:
        """
        Set training or evaluation mode, as ``torch.nn.Module.train`` does. Stock algorithms do it before every gradient step.

        :param mode: Whether to train.
        :return: The sequence itself.
        """
        if self.choice is None or type(mode) is not bool or [*self._modules.values()] != self._order:
            return super().train(mode)
        for module, kind, attributes in self._members:
            if type(module) is not kind or attributes["_modules"] or "train" in attributes:
                return super().train(mode)
        self.__dict__["training"] = mode
        for _, _, attributes in self._members:
            attributes["training"] = mode
        return self

    def __getstate__(self) -> dict[str, Any]:
        made = ("_members", "_order", "_hooks", "layers", "activations")
        state = {key: value for key, value in self.__dict__.items() if key not in made}
        return {**state, "_survivors": {}, "_decided": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.choice is not None:
            self._prepare()
