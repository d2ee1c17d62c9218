"""From a model to a file or a folder: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.export.arrangement import arranged
from sb3_sparse.export.artefact import Artefact
from sb3_sparse.export.c.program import LAYOUTS
from sb3_sparse.export.c.source import Source, arduino_library, check_name, generate, project
from sb3_sparse.export.check import Check, without_normalization
from sb3_sparse.export.check import check as run_check
from sb3_sparse.export.cortex_m import test_bench
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.onnx_file import require_onnx, to_onnx
from sb3_sparse.export.packed import in_half_precision, pack
from sb3_sparse.export.parity import require_same_decision
from sb3_sparse.export.targets import check_target, format_of
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.utils.checks import require_choice
from sb3_sparse_runtime.graph import Graph

#: What ``bits`` may be.
BITS = (None, 32, 16, 8, 7, 6, 5, 4, 3, 2)


@dataclass(frozen=True, eq=False)
class Exported:
    """
    What an export has written.

    :param path: The file or folder.
    :param files: All files.
    :param artefact: What is in them.
    :param check: What the check found, None without one.
    """

    path: Path
    files: tuple[Path, ...]
    artefact: Artefact
    check: Check | None = None

    @property
    def to(self) -> str:
        """Its format."""
        return self.artefact.to

    @property
    def graph(self) -> Graph:
        """The decision that it computes."""
        return self.artefact.graph

    @property
    def source(self) -> Source | None:
        """Generated C, None for another format."""
        return self.artefact.source

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


class CheckFailedError(ValueError):
    """
    An export does not decide as its model, and was not written.

    :param check: What the check found.
    """

    def __init__(self, check: Check) -> None:
        super().__init__(f"the export does not decide as its model, and nothing is written:\n{check}")
        self.check = check


def provenance_of(model: BaseAlgorithm, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Say where a policy comes from.

    :param model: A model.
    :param extra: What else is known.
    :return: Where a policy comes from, JSON values.
    """
    found = {
        "algorithm": type(model).__name__,
        "policy": type(policy_of(model)).__name__,
        "timesteps": int(model.num_timesteps),
        "seed": None if model.seed is None else int(model.seed),
        "sb3_sparse": version("sb3-sparse"),
        "stable_baselines3": stable_baselines3.__version__,
        "torch": str(th.__version__),
    }
    return {**found, **(extra or {})}


def report_of(model: BaseAlgorithm) -> dict[str, Any]:
    """
    Say what of a policy is sparse.

    :param model: A model.
    :return: What of the networks that choose actions is sparse, JSON values; empty for a stock policy.
    """
    if not isinstance(policy_of(model), SparsePolicyMixin):
        return {}
    report = sparsity_report(model).to_dict()
    networks = {name: size for name, size in report["networks"].items() if "critic" not in name and "target" not in name}
    keys = ("sparsity", "n_weights", "n_active", "bytes_with_indices", "bytes_dense", "real_ratio")
    sizes = {name: {key: size[key] for key in keys} for name, size in networks.items()}
    return {"networks": sizes, "inference_flops": report["inference_flops"]}


def check_bits(graph: Graph, bits: int | None, to: str) -> None:
    """
    Refuse a precision that the model does not have.

    :param graph: A decision.
    :param bits: Bits of a weight that are wanted, None for those it has.
    :param to: The format.
    :raises ValueError: If the decision has other ones.
    """
    require_choice("bits", bits, BITS)
    if bits == 16 and to != "packed":
        raise ValueError(f"`bits`=16 is for `to`='packed'; {to!r} computes with float32 or with integers of 2 to 8 bits")
    found = sorted({layer.bits for layer in graph.layers})
    if bits in (None, 32, 16):
        if bits is not None and found != [32]:
            raise ValueError(
                f"`bits`={bits}: the model is quantized, its weights have {' and '.join(map(str, found))} bits; leave it out"
            )
    elif bits not in found or any(other not in (bits, 32) for other in found):
        raise ValueError(
            f"`bits`={bits}: the model's weights have {' and '.join(map(str, found))} bits. Quantize it first, "
            f"sb3_sparse.quantize(model, bits={bits}), or train it with QuantizationAware"
        )


def make_artefact(
    model: BaseAlgorithm,
    to: str,
    *,
    bits: int | None = None,
    normalize: VecNormalize | None = None,
    distribution: bool = False,
    name: str = "policy",
    layout: str | None = None,
    arduino: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Artefact:
    """
    Make what an export writes, and compare its decision with the model's own.

    :param model: A model.
    :param to: The format.
    :param bits: As of :func:`export`, as for the following.
    :param normalize: Statistics of observations, None for none.
    :param distribution: Whether mean and standard deviation are wanted.
    :param name: What C's functions and files are called.
    :param layout: C's tables.
    :param arduino: Whether an Arduino library is wanted.
    :param provenance: What else a file shall say about where it comes from.
    :return: The content.
    :raises ValueError: If it cannot be exported.
    :raises ImportError: For ONNX without its package.
    """
    check_name(name)
    if arduino and to != "c":
        raise ValueError(f"`arduino` is for `to`='c', got {to!r}")
    if layout is not None and to not in ("c", "cortex-m"):
        raise ValueError(f"`layout` is for `to`='c' and 'cortex-m', got {to!r}")
    if layout is not None:
        require_choice("layout", layout, LAYOUTS)
    if to == "onnx":
        require_onnx()
    graph = decision_of(model, normalize=normalize, distribution=distribution)
    check_bits(graph, bits, to)
    require_same_decision(model, graph, normalize)
    origin = provenance_of(model, provenance)
    about = f"{origin['algorithm']} policy after {origin['timesteps']:,} steps."
    small = arduino or to == "cortex-m" or (layout or "").startswith("small")
    if to in ("packed", "c") and not small:
        graph = arranged(graph)
    if to == "packed":
        graph = in_half_precision(graph) if bits == 16 else graph
        return Artefact(to, graph, data=pack(graph, report_of(model), origin))
    if to == "onnx":
        return Artefact(to, graph, data=to_onnx(graph, about, origin))
    source = generate(graph, name, layout=layout or ("small" if small else "fast"), about=about)
    make = arduino_library if arduino else test_bench if to == "cortex-m" else project
    return Artefact(to, graph, texts=make(source), source=source)


def export(
    model: BaseAlgorithm,
    path: str | Path,
    *,
    to: str | None = None,
    bits: int | None = None,
    normalize: VecNormalize | str | None = "auto",
    distribution: bool = False,
    name: str = "policy",
    layout: str | None = None,
    arduino: bool = False,
    force: bool = False,
    check: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Exported:
    """
    Write down what ``predict(observation, deterministic=True)`` computes, for places without Stable-Baselines3.

    It takes observations as the environment gives them and answers actions as the environment takes them.

    :param model: A model with a sparse or a stock policy. Not changed, except that after a check its environment is reset
        when training goes on.
    :param path: A file, or for C a folder. It is written as a whole or, after an error, not at all.
    :param to: ``"packed"``: one file for :func:`sb3_sparse.load_policy`. ``"onnx"``: for ONNX Runtime. ``"c"``: a folder
        of C99 for a PC. ``"cortex-m"``: a folder of C99 with the smallest tables, and what runs it under QEMU. None: what the
        path's ending says.
    :param bits: Bits of a weight: 16 rounds float32 weights to float16 (packed alone); 2 to 8 make sure that the model is
        quantized so. None: as the model is.
    :param normalize: Statistics that its observations were normalised with; ``"auto"``: those of the model's environment.
    :param distribution: Whether mean and standard deviation of a Gaussian policy are written too (SAC, TQC, PPO, A2C).
    :param name: What C's functions and files are called.
    :param layout: C's tables: ``"fast"``, ``"small"``, ``"dense"`` or ``"small-dense"``, see
        :func:`sb3_sparse.export.c.source.generate`. None: ``"fast"`` for a PC, otherwise ``"small"``.
    :param arduino: With ``to="c"``, whether to write an Arduino library instead of a CMake project.
    :param force: Whether what is there may be replaced.
    :param check: Whether to compare with the model first, see :func:`sb3_sparse.export.check.check`; with the model's
        environment also in whole episodes.
    :param provenance: What else a packed file shall say about where it comes from, JSON values.
    :return: What was written.
    :raises ValueError: For arguments out of range, a place that cannot be written to, policies, spaces, layers or activation
        functions that cannot be exported, naming them, and a check that fails; nothing has been written then.
    :raises ImportError: For ONNX without its package, and a check without what it needs.
    """
    path = Path(path)
    to = format_of(path, to)
    path = check_target(path, to, force=force)
    if isinstance(normalize, str):
        require_choice("normalize", normalize, ("auto",))
        normalize = model.get_vec_normalize_env()
    if normalize is not None and not isinstance(normalize, VecNormalize):
        raise ValueError(f"`normalize` must be a VecNormalize, 'auto' or None, got {normalize!r}")
    artefact = make_artefact(
        model,
        to,
        bits=bits,
        normalize=normalize,
        distribution=distribution,
        name=name,
        layout=layout,
        arduino=arduino,
        provenance=provenance,
    )
    found = None
    if check:
        found = run_check(artefact, model, normalize, without_normalization(model.get_env()))
        model._last_obs = None  # its episode was broken off
    return write_checked(artefact, path, found)


def write_checked(artefact: Artefact, path: Path, check: Check | None) -> Exported:
    """
    Write an export, unless its check has failed.

    :param artefact: What is to be written.
    :param path: Where to.
    :param check: What the check found, None without one.
    :return: What was written.
    :raises CheckFailedError: A ``ValueError``, if it has failed.
    """
    if check is not None and not check.passed:
        raise CheckFailedError(check)
    return Exported(path, artefact.write(path), artefact, check)
