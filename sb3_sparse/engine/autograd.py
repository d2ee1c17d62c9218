"""A native pass as one operation of autograd: same gradients, same refusals as torch's operations in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.engine import native
from sb3_sparse.engine.gradients import may_run
from sb3_sparse.engine.survivors import Survivors

_NOTHING = th.empty(0)
#: As torch says it.
_MODIFIED = "one of the variables needed for gradient computation has been modified by an inplace operation"


def run_native(sequence: nn.Sequential, survivors: Survivors, x: th.Tensor) -> th.Tensor:
    """
    Run a forward pass, under autograd.

    :param sequence: A sequence that is to run natively.
    :param survivors: Its survivors.
    :param x: Shape [n_samples, inputs].
    :return: Shape [n_samples, outputs].
    """
    parameters = survivors.parameters
    with_gradient = th.is_grad_enabled() and (
        x.requires_grad or parameters[0].requires_grad or any(parameter.requires_grad for parameter in parameters)
    )
    n_samples = x.shape[0]
    y = x.new_empty(n_samples, survivors.n_outputs)
    with survivors.lock:
        if not survivors.follow():
            return nn.Sequential.forward(sequence, x)
        tape, is_finite = native.module.forward(
            survivors.network, x.data_ptr(), n_samples, *x.stride(), y.data_ptr(), th.get_num_threads(), with_gradient
        )
        if with_gradient:
            record = _Pass(survivors, tape, x, y)
    if not is_finite:
        # Torch multiplies what is not finite by the zeros of pruned weights too, and gets NaN
        return nn.Sequential.forward(sequence, x)
    return _Run.apply(record, x, *parameters) if with_gradient else y


def _version(x: th.Tensor) -> int:
    """How often an input was written to. One made in inference mode does not count, and is not written to outside of it."""
    return -1 if x.is_inference() else x._version


class _Pass:
    """A forward pass: what was kept, and the versions of the tensors it was made with."""

    __slots__ = ("bias_versions", "input_version", "survivors", "tape", "versions", "y")

    def __init__(self, survivors: Survivors, tape: Any, x: th.Tensor, y: th.Tensor) -> None:
        self.survivors, self.tape = survivors, tape
        #: The output, until it is handed out.
        self.y: th.Tensor | None = y
        self.versions = [weight._version for weight in survivors.weights]
        self.bias_versions = [bias._version for bias in survivors.biases]
        self.input_version = _version(x)

    def check_input(self, x: th.Tensor, node: Any) -> None:
        """
        Refuse an input that was written to, as torch does: if its first layer, which alone needs it, has a gradient.

        :param x: The input.
        :param node: See :meth:`reaches`.
        :raises RuntimeError: If it was written to since the forward pass.
        """
        if not self.survivors.parameters[0].requires_grad or _version(x) == self.input_version or self.reaches(node) != 0:
            return
        raise RuntimeError(
            f"{_MODIFIED}: the input of a sequence is at version {_version(x)}; expected version {self.input_version} instead"
        )

    def check_weights(self, first: int, node: Any) -> None:
        """
        Refuse what torch refuses.

        :param first: First layer whose weight the backward pass multiplies by.
        :param node: See :meth:`reaches`.
        :raises RuntimeError: If a weight was written to since the forward pass.
        """
        if [weight._version for weight in self.survivors.weights[first:]] == self.versions[first:]:
            return
        for index in range(max(first, self.reaches(node)), len(self.versions)):
            version = self.survivors.weights[index]._version
            if version != self.versions[index]:
                raise RuntimeError(
                    f"{_MODIFIED}: the weight of layer {index} of a sequence is at version {version}; expected version "
                    f"{self.versions[index]} instead"
                )

    def check_all(self, x: th.Tensor, output: th.Tensor) -> None:
        """
        Refuse a double backward of another pass than this one.

        :param x: The input.
        :param output: What torch makes of the input and the parameters as they are now.
        :raises RuntimeError: If one of them was written to since the forward pass.
        """
        survivors = self.survivors
        same = (
            _version(x) == self.input_version
            and [weight._version for weight in survivors.weights] == self.versions
            and [bias._version for bias in survivors.biases] == self.bias_versions
        )
        if same:
            # By `data` they can be written to without a new version; but for that, sums differ in their order alone
            before = self.activations(x.detach())[-1]
            rounding = 1e3 * th.finfo(x.dtype).eps * max(1.0, float(before.abs().max()))
            same = th.allclose(output, before, rtol=0, atol=rounding)
        if not same:
            raise RuntimeError(
                f"{_MODIFIED}: the input or a parameter of a sequence is not what it was in the forward pass, which a double "
                "backward needs; with engine='torch' only what is used again has to stay"
            )

    def reaches(self, node: Any) -> int:
        """
        Find out how far the backward pass that runs now goes; one to some inputs alone may end early.

        :param node: This pass's node of the graph, which knows where the input's gradient and each parameter's go. The
            parameters themselves may have another node by now: ``network.float()`` gives them one.
        :return: The first layer that it goes through.
        """
        edges = node.next_functions
        if may_run(edges[0][0]):
            return 0
        position = 1
        for index, (*_, bias) in enumerate(self.survivors.made_of):
            of_layer = edges[position : position + (1 if bias is None else 2)]
            if any(may_run(following) for following, _ in of_layer):
                return index
            position += len(of_layer)
        return len(self.versions)

    def activations(self, x: th.Tensor) -> list[th.Tensor]:
        """
        Get what the kernels kept as tensors.

        :param x: The input.
        :return: The input, and the output of each layer.
        """
        found = [x]
        for index, weight in enumerate(self.survivors.weights):
            found.append(x.new_empty(x.shape[0], weight.shape[0]))
            self.tape.output(index, found[-1].data_ptr())
        return found


class _Run(th.autograd.Function):
    """Hangs a forward pass that was made into the graph."""

    @staticmethod
    def forward(ctx: Any, record: _Pass, x: th.Tensor, *parameters: th.Tensor) -> Any:
        ctx.record, ctx.x = record, x
        y, record.y = record.y, None
        ctx.set_materialize_grads(False)
        # What torch's last layer keeps: it is refused then if somebody writes to it, and if the graph is freed already. And an
        # input that torch refuses to keep
        kept = [x] if x.is_inference() and parameters[0].requires_grad else []
        ctx.save_for_backward(*kept, y if record.survivors.activations[-1] else _NOTHING)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor | None) -> Any:
        record: _Pass = ctx.record
        x: th.Tensor = ctx.x
        survivors = record.survivors
        (dy,) = gradients
        needed = ctx.needs_input_grad[1:]
        _ = ctx.saved_tensors
        record.check_input(x, ctx)
        if dy is None:
            return (None,) * (1 + len(needed))
        record.check_weights(0 if needed[0] else 1, ctx)
        if th.is_grad_enabled():
            return None, *_differentiable(record, x, dy, needed)
        with survivors.lock:
            way = survivors.gradients.way(needed[1:]) if any(needed[1:]) else "nothing"
            # By `data` weights can be written to without a refusal: it is the new ones that count
            if not survivors.fits() or not survivors.follow() or way == "dense":
                weights = [survivors.matrix(index) for index in range(len(survivors.weights))]
                return None, *_gradients(survivors, record.activations(x.detach()), weights, dy, needed)
            if dy.layout is not th.strided or dy.is_neg():
                dy = dy.to_dense().resolve_neg()
            dx = x.new_empty(x.shape) if needed[0] else None
            deltas = native.module.backward(
                record.tape, dy.data_ptr(), *dy.stride(), 0 if dx is None else dx.data_ptr(), th.get_num_threads()
            )
            if way == "survivors":
                return None, dx, *survivors.gradients.at_survivors(deltas)
            if way == "wait":
                survivors.gradients.wait(deltas)
        return None, dx, *([None] * (len(needed) - 1))


def _gradients(
    survivors: Survivors, activations: list[th.Tensor], weights: Sequence[th.Tensor], dy: th.Tensor, needed: Sequence[bool]
) -> list[th.Tensor | None]:
    """Gradients of input and parameters by torch's dense operations, which autograd can differentiate again."""
    found: list[th.Tensor | None] = []
    for index in reversed(range(len(weights))):
        output = activations[index + 1]
        if survivors.activations[index] == 1:
            dy = th.ops.aten.threshold_backward(dy, output, 0)
        elif survivors.activations[index] == 2:
            dy = th.ops.aten.tanh_backward(dy, output)
        if survivors.layers[index].bias is not None:
            found.append(dy.sum(0))
        found.append(dy.t() @ activations[index])
        if index > 0 or needed[0]:
            dy = dy @ weights[index]
    found.append(dy if needed[0] else None)
    return [value if need else None for value, need in zip(reversed(found), needed, strict=True)]


def _differentiable(record: _Pass, x: th.Tensor, dy: th.Tensor, needed: Sequence[bool]) -> list[th.Tensor | None]:
    """The gradients with a graph of their own (``create_graph=True``): the forward pass is made once more, by torch."""
    survivors = record.survivors
    functions = {0: lambda value: value, 1: th.relu, 2: th.tanh}
    activations = [x]
    for (*_, weight, bias), activation in zip(survivors.made_of, survivors.activations, strict=True):
        output = nn.functional.linear(activations[-1], weight, bias)
        activations.append(functions[activation](output))
    record.check_all(x, activations[-1])
    return _gradients(survivors, activations, survivors.weights, dy, needed)
