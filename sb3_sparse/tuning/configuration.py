"""The configuration that a study begins with, and its relatives: the dense one, and the one of a given sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_sparse.callbacks.gradual_pruning import GradualPruning
from sb3_sparse.callbacks.mask_refresh import MaskRefresh
from sb3_sparse.callbacks.quantization_aware import QuantizationAware
from sb3_sparse.callbacks.revival import Revival
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.merge import algorithm_of, evaluate, write_kwargs
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.zoo.environments import require_packages
from sb3_sparse.zoo.presets import preset_entry, presets_folder
from sb3_sparse.zoo.sections import plain, read_section, zoo_configuration

#: What a network of sparsity 0 has instead of the configuration's.
_DENSE_KWARGS = {"sparsity": 0.0, "distribution": "erk", "pattern": "unstructured"}
#: As in the presets of ``static``.
_STATIC_SPARSITY = 0.8
_SPARSE_KWARGS = (*_DENSE_KWARGS, "dense_layers", "initial_mask", "mask_seed")


def preset_algorithms(method: str) -> list[str]:
    """
    Which algorithms a method has presets for.

    :param method: Name of a method.
    :return: rl-zoo3's names of them; none for a method that there is not.
    """
    return sorted(file.stem for file in (presets_folder() / method).glob("*.yml"))


def _section_of_file(file: Path, env: str) -> dict[str, Any]:
    if file.suffix not in (".yml", ".yaml"):
        raise ValueError(f"`--conf-file` {file} must be a YAML file: what is found is written as one")
    if not file.is_file():
        raise FileNotFoundError(f"`--conf-file`: there is no file {file}")
    return read_section(str(file), env)


def load_section(
    algo: str,
    env: str,
    *,
    method: str | None = None,
    conf_file: str | Path | None = None,
    steps: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Load the configuration that a study begins with.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param method: Name of a preset; ``"static"`` if neither it nor ``conf_file`` is given.
    :param conf_file: A YAML file of rl-zoo3's instead.
    :param steps: Environment steps of a training; None: the configuration's.
    :param parameters: Other hyperparameters than the configuration's.
    :return: What rl-zoo3 is told of the environment.
    :raises ValueError: For an algorithm, environment, preset or file that will not do.
    :raises FileNotFoundError: If there is no such file.
    :raises ImportError: If a package that the environment needs is not installed.
    """
    import rl_zoo3.import_envs  # noqa: F401

    algorithm_of(algo)
    require_packages(env)
    if env not in gym.registry:
        raise ValueError(f"`env`={env!r} is unknown to gymnasium; is the package that registers it imported?")
    if method is not None and conf_file is not None:
        raise ValueError("`--method` chooses a configuration file, and `--conf-file` names one: give one of them")
    section = _section_of_file(Path(conf_file), env) if conf_file else section_of_method(method or "static", algo, env)
    section = merged(section, parameters or {})
    total = section.get("n_timesteps") if steps is None else steps
    section["n_timesteps"] = require_integer("--steps", _whole(total), low=1)
    return section


def section_of_method(method: str, algo: str, env: str) -> dict[str, Any]:
    """
    What a method says of an environment. ``dense`` and ``static`` are there for every algorithm: where they have no preset, it
    is rl-zoo3's own configuration, dense, or with masks as sparse as in the presets that there are.

    :param method: Name of the method.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :return: Its section.
    :raises ValueError: For a method, algorithm or environment that there is not.
    """
    if method not in ("dense", "static") or algo in preset_algorithms(method):
        return preset_entry(method, algo, env)
    section = read_section(zoo_configuration(algo), env)
    if method == "dense":
        return section
    draft = Draft(section, algo)
    draft.make_sparse()
    draft.set_sparsity(_STATIC_SPARSITY)
    if not draft.has_convolutions:
        draft.set_distribution("er")
    return draft.written()


def merged(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """
    Other hyperparameters in a configuration. Keyword arguments of the policy and of the replay buffer come beside those that
    are there, so that ``policy_kwargs:{net_arch: [64, 64]}`` does not cost a network its sparsity.

    :param section: A configuration.
    :param parameters: What shall be otherwise.
    :return: A new one.
    """
    result = plain(dict(section))
    for name, value in parameters.items():
        if name in ("policy_kwargs", "replay_buffer_kwargs") and result.get(name) is not None and value is not None:
            old, new = evaluate(result[name]), evaluate(value)
            if not isinstance(new, Mapping):
                raise ValueError(f"`--params` {name!r} must be a map, got {value!r}")
            result[name] = write_kwargs(result[name], old, {**old, **new})
        else:
            result[name] = plain(value)
    return result


def _whole(number: Any) -> Any:
    """YAML files write 1e6."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def dense(section: Mapping[str, Any], algo: str) -> dict[str, Any]:
    """
    The same without sparsity and quantization, bit for bit what stock Stable-Baselines3 trains. The policy is the sparse one
    at sparsity 0, so that its costs are counted alike; everything else (replay, multi-step targets, rates) stays.

    :param section: A configuration.
    :param algo: rl-zoo3's name of the algorithm.
    :return: A new one.
    """
    draft = Draft(section, algo)
    draft.make_sparse()
    kept = {key: value for key, value in draft.policy_kwargs.items() if key not in _SPARSE_KWARGS}
    draft.policy_kwargs = {**kept, **_DENSE_KWARGS}
    draft.callbacks.remove(SET, RigL, MaskRefresh, Revival, GradualPruning, QuantizationAware)
    result = draft.written()
    if not result.get("callback"):
        result.pop("callback", None)
    return result


def with_sparsity(section: Mapping[str, Any], algo: str, sparsity: float) -> dict[str, Any]:
    """
    The same at another sparsity, in every network that the configuration makes sparse (without any in it, in all). It takes
    the place of a distribution that says how sparse each layer is. A configuration that prunes while it trains begins dense,
    from where every sparsity can be reached, and ends at this one.

    :param section: A configuration.
    :param algo: rl-zoo3's name of the algorithm.
    :param sparsity: In [0, 1).
    :return: A new one.
    :raises ValueError: If the configuration's pattern leaves no choice of sparsity.
    """
    draft = Draft(section, algo)
    if (fixed := draft.pattern.fixed_sparsity) is not None:
        raise ValueError(
            f"`pattern`={draft.pattern.spec!r} is {100 * fixed:g} % sparse, always: there is no sparsity to choose. Begin "
            "with a --method or --conf-file whose pattern is unstructured or block:RxC; --search pattern tries several"
        )
    old = draft.sparsity
    draft.make_sparse()
    if isinstance(old, Mapping) and any(old.values()):
        # A map keeps its networks, but for those that it wants dense
        draft.set_sparsity({network: sparsity if value else 0.0 for network, value in old.items()})
    else:
        draft.set_sparsity(sparsity)
    return draft.written()
