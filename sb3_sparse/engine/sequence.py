"""A sequence of sparse layers and activations that runs as one native call each way, where the engine is to run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules import module as torch_module

from sb3_sparse.engine import native
from sb3_sparse.engine.choice import Choice
from sb3_sparse.engine.survivors import ACTIVATIONS, SUPPORTED_DTYPES, Mirror, can_mirror
from sb3_sparse.nn.layers import SparseLinear

_will_run = getattr(th._C, "_will_engine_execute_node", None)


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
    #: Whether weights get no gradients when the input wants one: the critic in the actor's update, whose gradients
    #: every stock algorithm throws away.
    frozen_for_inputs: bool = False
    #: Set while the sequence is called as one of an :class:`Ensemble`.
    ensemble: _Running | None = None
    _mirrors: dict[th.dtype, Mirror]
    _decided: dict[tuple[int, ...], bool]
    _hooks: list[dict[int, Any]]

    @staticmethod
    def adopt(sequence: nn.Sequential, choice: Choice) -> bool:
        """
        :param sequence: A plain sequence, or one that is adopted already.
        :param choice: What decides on the engine.
        :return: Whether the sequence is one that the kernels can run; otherwise it is left as it is.
        """
        if type(sequence) not in (nn.Sequential, SparseSequential) or _layers_of(list(sequence)) is None:
            return False
        sequence.__class__ = SparseSequential
        assert isinstance(sequence, SparseSequential)
        sequence.choice = choice
        sequence.frozen_for_inputs = False
        sequence.ensemble = None
        sequence._mirrors, sequence._decided = {}, {}
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

    def mirror(self) -> Mirror:
        """The mirror of the present masks and memory; made anew when they have changed."""
        mirror = self.present_mirror()
        if mirror is None:
            mirror = self._mirrors[self.layers[0].weight.dtype] = Mirror(self.layers, self.activations)
        return mirror

    def present_mirror(self) -> Mirror | None:
        """The mirror of the present masks and memory, if there is one."""
        mirror = self._mirrors.get(self.layers[0].weight.dtype)
        return mirror if mirror is not None and mirror.fits() else None

    def forget_gradients(self) -> None:
        """Be told that the gradients of all parameters are cleared."""
        for mirror in self._mirrors.values():
            mirror.unseen = False

    def native_mirror(self, x: th.Tensor) -> Mirror | None:
        """
        :param x: Input.
        :return: The mirror that runs it natively, None if torch is to run it.
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
        if th.is_autocast_enabled("cpu") or th._C._get_tracing_state() or th._C._functorch.maybe_current_level() is not None:
            return None
        mirror = self._mirrors.get(dtype)
        if mirror is None or not mirror.fits():
            if not can_mirror(self.layers, dtype):
                return None
            mirror = None
        n_samples = x.shape[0]
        key = (n_samples, th.get_num_threads(), *[layer.n_active for layer in self.layers])
        decided = self._decided.get(key)
        if decided is None:
            decided = self._decided[key] = n_samples > 0 and self.choice.is_native(self, n_samples)
        if not decided or x.shape[1] != self.layers[0].in_features:
            return None
        return mirror or self.mirror()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Shape [n_samples, inputs].
        :return: Shape [n_samples, outputs].
        """
        if th.compiler.is_compiling():
            return super().forward(x)
        if self.ensemble is not None and (output := self.ensemble.output_of(self, x)) is not None:
            return output
        mirror = self.native_mirror(x)
        return super().forward(x) if mirror is None else run_native([self], [mirror], x)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mirrors": {}, "_decided": {}, "ensemble": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.choice is not None:
            self._prepare()


class Ensemble(list[SparseSequential]):
    """
    Sequences that are called one after the other on the same input: twin critics. While they are iterated over, the first that
    is called runs all of them at once, and the others hand out what it found.
    """

    def __iter__(self) -> Iterator[SparseSequential]:
        running = _Running(list(super().__iter__()))
        for sequence in running.sequences:
            # Comes with every pass; by the module's own setattr it takes longer than the rest of it
            sequence.__dict__["ensemble"] = running
            try:
                yield sequence
            finally:
                sequence.__dict__["ensemble"] = None


class _Running:
    """One iteration over an ensemble."""

    def __init__(self, sequences: list[SparseSequential]) -> None:
        self.sequences = sequences
        self.x: th.Tensor | None = None
        self.outputs: dict[SparseSequential, th.Tensor] = {}

    def output_of(self, sequence: SparseSequential, x: th.Tensor) -> th.Tensor | None:
        """
        :param sequence: One of the sequences.
        :param x: Its input.
        :return: Its output, None if it has to run alone.
        """
        if self.x is None:
            self.x = x
            mirrors = [member.native_mirror(x) for member in self.sequences]
            found = [mirror for mirror in mirrors if mirror is not None]
            if len(found) == len(mirrors):
                self.outputs = dict(zip(self.sequences, run_native(self.sequences, found, x), strict=True))
        return self.outputs.get(sequence) if x is self.x else None


def run_native(sequences: list[SparseSequential], mirrors: list[Mirror], x: th.Tensor) -> tuple[th.Tensor, ...]:
    """
    One forward pass of several sequences over one input, under autograd.

    :param sequences: Sequences that are to run natively.
    :param mirrors: The mirror of each.
    :param x: Shape [n_samples, inputs].
    :return: Output of each, shape [n_samples, outputs].
    """
    for mirror in mirrors:
        mirror.follow()
    with_gradient = th.is_grad_enabled()
    parameters: list[th.Tensor] = []
    frozen = False
    if with_gradient:
        frozen = x.requires_grad and all(sequence.frozen_for_inputs for sequence in sequences)
        if not frozen:
            parameters = [parameter for mirror in mirrors for parameter in mirror.parameters]
        with_gradient = x.requires_grad or any(parameter.requires_grad for parameter in parameters)
    n_samples = x.shape[0]
    source = x.detach() if with_gradient else x
    y = [source.new_empty(n_samples, mirror.n_outputs) for mirror in mirrors]
    tape, is_finite = native.module.forward(
        [mirror.network for mirror in mirrors],
        x.data_ptr(),
        n_samples,
        x.stride(0),
        x.stride(1),
        [output.data_ptr() for output in y],
        th.get_num_threads(),
        with_gradient,
    )
    if not is_finite:
        # Torch multiplies what is not finite by the zeros of pruned weights too, and gets NaN
        return tuple(nn.Sequential.forward(sequence, x) for sequence in sequences)
    if not with_gradient:
        return tuple(y)
    versions = [[*mirror.seen] for mirror in mirrors]
    return _Run.apply(_Pass(mirrors, tape, frozen, versions), y, x, *parameters)


@dataclass(frozen=True)
class _Pass:
    mirrors: list[Mirror]
    tape: Any
    frozen: bool
    #: Versions of the weights it was made with.
    versions: list[list[int]]

    def check_weights(self, first: int) -> None:
        """
        :param first: First layer whose weight the backward pass multiplies by.
        :raises RuntimeError: As torch does, if a weight was written to since the forward pass.
        """
        for mirror, versions in zip(self.mirrors, self.versions, strict=True):
            for index in range(first, len(versions)):
                if mirror.weights[index]._version != versions[index]:
                    raise RuntimeError(
                        "one of the variables needed for gradient computation has been modified by an inplace operation: the "
                        f"weight of layer {index} of a sequence is at version {mirror.weights[index]._version}; expected "
                        f"version {versions[index]} instead"
                    )


class _Run(th.autograd.Function):
    """Hangs a forward pass that was made into the graph."""

    @staticmethod
    def forward(ctx: Any, this: _Pass, y: list[th.Tensor], x: th.Tensor, *parameters: th.Tensor) -> Any:
        ctx.this, ctx.x = this, x
        ctx.set_materialize_grads(False)
        return tuple(y)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor | None) -> Any:
        this: _Pass = ctx.this
        x: th.Tensor = ctx.x
        this.check_weights(0 if ctx.needs_input_grad[2] else 1)
        if th.is_grad_enabled():
            return None, None, *_differentiable(this, x, gradients, ctx.needs_input_grad[2:])
        mirrors = this.mirrors
        dy = [
            x.new_zeros(x.shape[0], mirror.n_outputs) if gradient is None else gradient
            for mirror, gradient in zip(mirrors, gradients, strict=True)
        ]
        needed = ctx.needs_input_grad[3:]
        direct = bool(needed) and _is_direct(mirrors)
        if any(needed) and not direct:
            for mirror in mirrors:
                mirror.show_gradients()  # the network's room for them is needed
        accumulate = [direct and mirror.has_gradients() for mirror in mirrors]
        dx = x.new_empty(x.shape) if ctx.needs_input_grad[2] else None
        native.module.backward(
            this.tape,
            [(gradient.data_ptr(), gradient.stride(0), gradient.stride(1)) for gradient in dy],
            [any(needed)] * len(mirrors),
            accumulate,
            0 if dx is None else dx.data_ptr(),
            th.get_num_threads(),
        )
        if not direct:
            dense = [gradient for mirror in mirrors for gradient in mirror.dense_gradients()] if needed else []
            return None, None, dx, *(value if need else None for value, need in zip(dense, needed, strict=True))
        for mirror in mirrors:
            mirror.publish_gradients()
        return None, None, dx, *([None] * len(needed))


def _is_direct(mirrors: list[Mirror]) -> bool:
    """
    Whether gradients may be put straight into ``grad``, survivors only: this is a ``backward()`` that would put them there,
    and nobody watches on the way. Otherwise autograd gets dense gradients, as from any other operation.
    """
    if _will_run is None:
        return False
    try:
        for mirror in mirrors:
            if len(mirror.nodes) != len(mirror.parameters):
                return False
            for node in mirror.nodes:
                if not _will_run(node):
                    return False
    except RuntimeError:  # autograd.grad() of a leaf
        return False
    return all(mirror.can_publish() for mirror in mirrors)


def _differentiable(this: _Pass, x: th.Tensor, gradients: Sequence[th.Tensor | None], needed: Sequence[bool]) -> list[Any]:
    """The same gradients by dense torch, with a graph of their own (``create_graph=True``)."""
    inputs = [x, *([] if this.frozen else [parameter for mirror in this.mirrors for parameter in mirror.parameters])]
    outputs = [mirror.dense_forward(x) for mirror in this.mirrors]
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    wanted = [value for value, need in zip(inputs, needed, strict=True) if need]
    found = iter(
        th.autograd.grad(
            [pair[0] for pair in pairs], wanted, [pair[1] for pair in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if need else None for need in needed]
