"""What ``sb3-sparse export`` does: from a model's file, or a folder of rl-zoo3's, to a deployed policy."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.cli.progress import progress_bars
from sb3_sparse.conversion.loading import find_model_file, load_model
from sb3_sparse.conversion.quantize import quantize
from sb3_sparse.conversion.sparsify import sparsify
from sb3_sparse.export import Exported
from sb3_sparse.export.check import check as run_check
from sb3_sparse.export.exporter import make_artefact, write_checked
from sb3_sparse.export.normalization import statistics_of
from sb3_sparse.export.targets import SUFFIXES, check_target, format_of
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.zoo.runs import ZooRun, find_zoo_run, make_training_env, require_fitting_env


def output_path(file: Path, output: str | Path | None, to: str | None) -> tuple[Path, str]:
    """
    Say where an export goes if nobody does.

    :param file: The model.
    :param output: What was asked for, None: beside the model, under its name.
    :param to: The format, None: what the output's ending says.
    :return: Path and format.
    :raises ValueError: If neither says which format.
    """
    if output is not None:
        path, to = Path(output), format_of(Path(output), to)
        if not path.parent.is_dir():
            raise ValueError(f"`--output` {path}: there is no folder {path.parent}")
        return path, to
    if to is None:
        raise ValueError(f"`--to` is left out: give one of {', '.join(SUFFIXES)}, or `--output` with its ending")
    to = format_of(file.with_suffix(""), to)
    suffix = SUFFIXES[to]
    return file.with_name(f"{file.stem}{suffix}" if suffix is not None else f"{file.stem}-{to}"), to


def _is_quantized(model: BaseAlgorithm) -> bool:
    return any(isinstance(module, SparseLayer) and module.quantizer is not None for module in policy_of(model).modules())


def quantized(model: BaseAlgorithm, run: ZooRun, env_id: str | None, bits: int, seed: int) -> BaseAlgorithm:
    """
    Quantize a loaded model with observations from its environment.

    :param model: A model, sparse or stock.
    :param run: What rl-zoo3's folder says.
    :param env_id: The environment.
    :param bits: Bits of a weight.
    :param seed: Seed of the environment.
    :return: The quantized model.
    :raises ValueError: Without an environment.
    """
    if env_id is None:
        raise ValueError(
            "`--bits` quantizes the model, which needs observations: give `--env`; beside the model there is no folder of "
            "rl-zoo3 that names it"
        )
    playground = make_training_env(run, env_id, model.n_envs, seed)
    require_fitting_env(model, playground, env_id)
    model.set_env(playground)
    if not isinstance(policy_of(model), SparsePolicyMixin):
        model = sparsify(model, 0.0)
    return quantize(model, bits=bits)


def export_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    to: str | None = None,
    bits: int | None = None,
    check: bool = False,
    n_episodes: int = 10,
    n_observations: int = 2000,
    env: str | None = None,
    seed: int = 0,
    algorithm: str | None = None,
    force: bool = False,
    **options: Any,
) -> Exported:
    """
    Export a saved model, quantized first if that is wanted and it is not.

    :param path: A model's zip, or a folder: the model saved there last.
    :param output: Where to; None: beside the model, under its name.
    :param to: See :func:`sb3_sparse.export`, as for the options.
    :param bits: As there, but a model that is not quantized is.
    :param check: Whether to compare with the model, also in whole episodes if the environment is known.
    :param n_episodes: Episodes of a check.
    :param n_observations: Observations of each kind of a check.
    :param env: Environment; None: what rl-zoo3's folder says.
    :param seed: Seed of observations and episodes.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param force: Whether what is there may be replaced.
    :param options: Name, layout, arduino, distribution.
    :return: What was written.
    :raises ValueError: For mistakes in the arguments and a check that fails; nothing has been written then.
    """
    file = find_model_file(path)
    target, to = output_path(file, output, to)
    target = check_target(target, to, force=force)
    require_integer("--episodes", n_episodes, low=1)
    require_integer("--observations", n_observations, low=1)
    require_integer("--seed", seed, low=0, high=2**32 - 1)
    run = find_zoo_run(file)
    env_id = env or run.env_id
    normalize = statistics_of(run)
    model = load_model(file, algorithm)
    if bits is not None and 2 <= bits <= 8 and not _is_quantized(model):
        model = quantized(model, run, env_id, bits, seed)
    origin = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "environment": env_id}
    artefact = make_artefact(model, to, bits=bits, normalize=normalize, provenance=origin, **options)
    found = None
    if check:
        # What was exported sees observations as they come, and normalises them itself
        raw = None
        if env_id is not None:
            raw = make_training_env(replace(run, statistics=None), env_id, 1, seed)
            require_fitting_env(model, raw, env_id)
        amounts = dict(n_observations=n_observations, n_episodes=n_episodes, seed=seed)
        with progress_bars() as watch:
            found = run_check(artefact, model, normalize, raw, watch=watch, **amounts)
    return write_checked(artefact, target, found)
