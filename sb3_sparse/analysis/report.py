"""What of a model is sparse, and what that saves: as numbers, as a table, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_sparse.analysis.dead_units import dead_units, find_hidden
from sb3_sparse.analysis.flops import Flops
from sb3_sparse.analysis.gradient_step import batch_size, inference_flops, training_flops
from sb3_sparse.engine.choice import describe_engine
from sb3_sparse.masks.encodings import smallest_encoding, value_bytes
from sb3_sparse.masks.plan import LayerPlan
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import SparsePolicyMixin, sparse_policy
from sb3_sparse.policies.structure import TARGET_SUFFIX, LeftOut, network_parameters, weights_left_out
from sb3_sparse.utils.markdown import markdown

BYTES_PER_VALUE = 4  # fp32


def weight_bits(layer: nn.Module) -> int:
    """
    Say how many bits a value of a layer's weight takes when it is packed.

    :param layer: A layer.
    :return: Bits that each value of its weight takes when it is packed: its attribute ``weight_bits`` if it has one (a
        quantized layer), otherwise 32.
    """
    return int(getattr(layer, "weight_bits", 8 * BYTES_PER_VALUE))


@dataclass(frozen=True)
class LayerReport:
    """
    What the report says of one prunable layer.

    :param name: Path in the policy.
    :param network: The network the layer belongs to.
    :param shape: Shape of its weight.
    :param pattern: ``"dense"`` if ``dense_layers`` keeps it dense, otherwise its pattern.
    :param n_weights: Positions of the weight.
    :param n_active: Positions that exist.
    :param weight_bits: Bits per value.
    :param encoding: The plain encoding with the fewest bytes for its values and indices, see
        :mod:`sb3_sparse.masks.encodings`.
    :param index_bytes: Bytes that say which positions exist, in that encoding.
    :param scale_bytes: Bytes of a quantized layer's scales: one fp32 number per output, and of quantized inputs one fp32
        number and a zero point of as many bits as they have, in whole bytes.
    :param no_inputs: Units (outputs of a hidden layer) that died for want of inputs, also after others died; None where this
        is not known or the layer is no hidden one.
    :param no_outputs: Units that died for want of outputs.
    """

    name: str
    network: str
    shape: tuple[int, ...]
    pattern: str
    n_weights: int
    n_active: int
    weight_bits: int
    encoding: str
    index_bytes: int
    scale_bytes: int
    no_inputs: int | None = None
    no_outputs: int | None = None

    @property
    def sparsity(self) -> float:
        return 1 - self.n_active / self.n_weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of the values that exist, as the papers count."""
        return value_bytes(self.n_active, self.weight_bits)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the values that are stored (with the dense encoding all), of indices and scales."""
        n_stored = self.n_weights if self.encoding == "dense" else self.n_active
        return value_bytes(n_stored, self.weight_bits) + self.index_bytes + self.scale_bytes


@dataclass(frozen=True)
class SizeReport:
    """
    All weights, all parameters, and bytes.

    :param n_weights: Positions of all weights, also of those that cannot be sparse.
    :param n_active: Positions that exist.
    :param n_left_out: Weights among them that cannot be sparse, fp32: LSTMs, attention, subclasses of layers, ...
    :param n_other: All other parameters, fp32: biases, ``log_std``, normalisation.
    :param weight_bytes: Bytes of the weights that exist.
    :param packed_weight_bytes: Bytes of the weights in their smallest encodings, with indices and scales.
    """

    n_weights: int
    n_active: int
    n_left_out: int
    n_other: int
    weight_bytes: int
    packed_weight_bytes: int

    @property
    def sparsity(self) -> float:
        """Fraction of all weights that are zero; 0 where there are none."""
        return 1 - self.n_active / self.n_weights if self.n_weights else 0.0

    @property
    def n_parameters(self) -> int:
        """Parameters that exist."""
        return self.n_active + self.n_other

    @property
    def n_parameters_dense(self) -> int:
        """Parameters of the dense twin."""
        return self.n_weights + self.n_other

    @property
    def bytes(self) -> int:
        """Bytes of the parameters that exist, indices not counted."""
        return self.weight_bytes + BYTES_PER_VALUE * self.n_other

    @property
    def bytes_with_indices(self) -> int:
        """Bytes of all parameters when every weight is packed in its smallest encoding, with indices and scales."""
        return self.packed_weight_bytes + BYTES_PER_VALUE * self.n_other

    @property
    def bytes_dense(self) -> int:
        """Bytes of the dense twin in fp32."""
        return BYTES_PER_VALUE * self.n_parameters_dense

    @property
    def papers_ratio(self) -> float:
        """
        How many times smaller the papers call it (Ivanov et al. 2025): ``(32 / bits) / density`` of all weights, indices and
        all other parameters not counted.
        """
        if not self.n_weights:
            return 1.0
        return BYTES_PER_VALUE * self.n_weights / self.weight_bytes if self.weight_bytes else math.inf

    @property
    def real_ratio(self) -> float:
        """How many times smaller it is: bytes of the dense twin by bytes with indices."""
        return self.bytes_dense / self.bytes_with_indices


@dataclass(frozen=True)
class SparsityReport:
    """
    The state of a model. ``print`` it for a table.

    :param algorithm: Name of the algorithm.
    :param policy: Name of the policy class.
    :param layers: Every prunable online layer.
    :param left_out: All other weights of online networks, which stay dense, with the reason.
    :param networks: Size of every online network, and of every target network under ``"<network> (target)"``.
    :param online: All online networks together, with parameters that belong to none (PPO's ``log_std``).
    :param total: Online and target networks together.
    :param inference: FLOPs of deciding on one action, NaN if they cannot be counted.
    :param training: FLOPs of one gradient step at the model's batch size, delayed actor updates averaged; None for an
        algorithm unknown to this library, NaN if they cannot be counted.
    :param batch_size: Samples per gradient step.
    :param engine: What multiplies, see :mod:`sb3_sparse.engine`.
    :param not_counted: Why FLOPs cannot be counted; None if they are.
    """

    algorithm: str
    policy: str
    layers: tuple[LayerReport, ...]
    left_out: tuple[LeftOut, ...]
    networks: dict[str, SizeReport]
    online: SizeReport
    total: SizeReport
    inference: Flops
    training: Flops | None
    batch_size: int
    engine: str
    not_counted: str | None = None

    def to_dict(self) -> dict:
        """The report as plain JSON values."""

        def size(report: SizeReport) -> dict:
            counts = ("sparsity", "n_parameters", "n_parameters_dense")
            derived = (*counts, "bytes", "bytes_with_indices", "bytes_dense", "papers_ratio", "real_ratio")
            values = {**asdict(report), **{name: getattr(report, name) for name in derived}}
            return finite(values)

        def finite(values: dict) -> dict:
            # JSON knows no infinity, the papers' ratio of a network without a weight, and no NaN
            return {name: value if math.isfinite(value) else None for name, value in values.items()}

        return {
            "algorithm": self.algorithm,
            "policy": self.policy,
            "batch_size": self.batch_size,
            "engine": self.engine,
            "layers": [
                {
                    **asdict(layer),
                    "shape": list(layer.shape),
                    "sparsity": layer.sparsity,
                    "packed_bytes": layer.packed_bytes,
                }
                for layer in self.layers
            ],
            "left_out": [asdict(one) for one in self.left_out],
            "networks": {name: size(report) for name, report in self.networks.items()},
            "online": size(self.online),
            "total": size(self.total),
            "inference_flops": finite(asdict(self.inference)),
            "training_flops": finite(asdict(self.training)) if self.training is not None else None,
            "not_counted": self.not_counted,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _layer_rows(self) -> list[list[str]]:
        return [
            [
                layer.name,
                layer.network,
                "x".join(map(str, layer.shape)),
                layer.pattern,
                f"{layer.n_active:,} / {layer.n_weights:,}",
                f"{layer.sparsity:.2%}",
                layer.encoding,
                f"{layer.packed_bytes:,}",
                "-" if layer.no_inputs is None else f"{layer.no_inputs} + {layer.no_outputs}",
            ]
            for layer in self.layers
        ]

    def _size_rows(self) -> list[list[str]]:
        named = [*self.networks.items(), ("all online", self.online)]
        if self.total != self.online:
            named.append(("all with targets", self.total))
        return [
            [
                name,
                f"{size.sparsity:.2%}",
                f"{size.n_parameters:,} / {size.n_parameters_dense:,}",
                f"{size.bytes:,}",
                f"{size.bytes_with_indices:,}",
                f"{size.bytes_dense:,}",
                f"{size.papers_ratio:.1f}x",
                f"{size.real_ratio:.1f}x",
            ]
            for name, size in named
        ]

    def _flop_rows(self) -> list[list[str]]:
        named = [("one action", self.inference), (f"one gradient step (batch {self.batch_size})", self.training)]
        return [
            [
                name,
                f"{flops.sparse:,.0f}",
                f"{flops.dense:,.0f}",
                f"{flops.dense / flops.sparse:.1f}x" if flops.sparse else "-",
            ]
            if flops.is_known
            else [name, "-", "-", "-"]
            for name, flops in named
            if flops is not None
        ]

    def _left_out_rows(self) -> list[list[str]]:
        return [
            [one.name, one.network, one.kind, f"{one.n_weights:,}", f"{one.n_weights / self.online.n_weights:.2%}", one.reason]
            for one in self.left_out
        ]

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        left_out = (["stays dense", "network", "kind", "weights", "of all weights", "why"], self._left_out_rows())
        return [
            (
                ["layer", "network", "shape", "pattern", "non-zeros", "sparsity", "encoding", "bytes", "dead in + out"],
                self._layer_rows(),
            ),
            *([left_out] if self.left_out else []),
            (
                ["network", "sparsity", "parameters", "bytes", "with indices", "dense fp32", "papers' ratio", "smaller"],
                self._size_rows(),
            ),
            (["FLOPs of", "sparse", "dense", "fewer"], self._flop_rows()),
        ]

    def to_markdown(self) -> str:
        """The report as Markdown tables."""
        blocks = []
        for header, rows in self._tables():
            blocks.append(markdown(header, rows))
        if self.not_counted is not None:
            blocks.append(f"{self.not_counted}\n")
        return "\n".join(blocks)

    def __str__(self) -> str:
        lines = [f"{self.algorithm} with {self.policy}, engine {self.engine}"]
        for header, rows in self._tables():
            widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
            lines.append("")
            for row in (header, ["-" * width for width in widths], *rows):
                numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
                lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
        if self.not_counted is not None:
            lines += ["", self.not_counted]
        return "\n".join(lines)


def _size(
    parameters: Iterable[nn.Parameter], layer_of: Mapping[int, LayerReport], left_out: Collection[nn.Parameter]
) -> SizeReport:
    """Size of a set of parameters; those in ``layer_of`` (by identity) are weights that can be sparse."""
    parameters = list(parameters)
    layers = [layer_of[id(parameter)] for parameter in parameters if id(parameter) in layer_of]
    others = [parameter for parameter in parameters if id(parameter) not in layer_of]
    n_left_out = sum(parameter.numel() for parameter in others if parameter in left_out)
    return SizeReport(
        n_weights=sum(layer.n_weights for layer in layers) + n_left_out,
        n_active=sum(layer.n_active for layer in layers) + n_left_out,
        n_left_out=n_left_out,
        n_other=sum(parameter.numel() for parameter in others) - n_left_out,
        weight_bytes=sum(layer.weight_bytes for layer in layers) + BYTES_PER_VALUE * n_left_out,
        packed_weight_bytes=sum(layer.packed_bytes for layer in layers) + BYTES_PER_VALUE * n_left_out,
    )


def _dead(policy: SparsePolicyMixin) -> dict[str, tuple[int, int]]:
    """Units without inputs and without outputs by layer name; of no layer if the networks are no plain chains."""
    try:
        dead = dead_units(find_hidden(policy))
    except NotImplementedError:
        return {}
    return {name: (dead.no_inputs[name], dead.no_outputs[name]) for name in dead.alive}


def _scale_bytes(layer: SparseLayer) -> int:
    if layer.quantizer is None:
        return 0
    input_bits = layer.quantizer.input_bits
    of_inputs = 0 if input_bits is None else BYTES_PER_VALUE + value_bytes(1, input_bits)
    return BYTES_PER_VALUE * layer.weight.shape[0] + of_inputs


def _layer_report(plan: LayerPlan, layer: SparseLayer, dead: tuple[int, int] | tuple[None, None]) -> LayerReport:
    bits = weight_bits(layer)
    mask = layer.weight_mask.flatten(1).cpu().numpy()
    encoding, index_bytes = smallest_encoding(mask, plan.pattern, bits)
    return LayerReport(
        name=plan.info.name,
        network=plan.info.network,
        shape=plan.info.shape,
        pattern="dense" if plan.exempt else plan.pattern.spec,
        n_weights=plan.info.n_weights,
        n_active=layer.n_active,
        weight_bits=bits,
        encoding=encoding.name,
        index_bytes=index_bytes,
        scale_bytes=_scale_bytes(layer),
        no_inputs=dead[0],
        no_outputs=dead[1],
    )


def sparsity_report(model: BaseAlgorithm) -> SparsityReport:
    """
    Report what of a model is sparse. Nothing of the model changes, and no random stream.

    :param model: A model with a sparse policy.
    :return: The report, a snapshot; ``print`` it for a table.
    :raises TypeError: If the model's policy is not sparse.
    """
    policy = sparse_policy(model)
    sparsifier = policy.sparsifier
    layers, layer_of = [], {}
    dead = _dead(policy)
    for name, layer in sparsifier.layers.items():
        report = _layer_report(sparsifier.plan[name], layer, dead.get(name, (None, None)))
        layers.append(report)
        for twin in (layer, *sparsifier.targets[name]):
            layer_of[id(twin.weight)] = report
    parameters = network_parameters(policy, policy.structure)
    left_out = weights_left_out(policy)
    targets = {id(parameter) for name, members in parameters.items() if name.endswith(TARGET_SUFFIX) for parameter in members}
    outside = [parameter for parameter in left_out if parameter not in set(policy.parameters())]
    not_counted = None
    try:
        inference, training = inference_flops(model, policy), training_flops(model, policy)
    except NotImplementedError as error:
        not_counted = str(error)
        inference, training = Flops(math.nan, math.nan), Flops(math.nan, math.nan)
    return SparsityReport(
        algorithm=type(model).__name__,
        policy=type(policy).__name__,
        layers=tuple(layers),
        left_out=tuple(policy.structure.left_out),
        networks={name: _size(members, layer_of, left_out) for name, members in parameters.items()},
        online=_size(
            [*(parameter for parameter in policy.parameters() if id(parameter) not in targets), *outside], layer_of, left_out
        ),
        total=_size([*policy.parameters(), *outside], layer_of, left_out),
        inference=inference,
        training=training,
        batch_size=batch_size(model),
        engine=describe_engine(policy.sparsity_config.engine),
        not_counted=not_counted,
    )
