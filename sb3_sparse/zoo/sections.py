"""rl-zoo3's configuration files: reading one environment's section as rl-zoo3 does, and the text of one."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from sb3_sparse.zoo.presets import section_key


def plain(value: Any) -> Any:
    """
    Copy what a YAML file can hold.

    :param value: Anything a YAML file can hold, or else.
    :return: A copy without shared parts, maps as dicts.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def zoo_configuration(algo: str) -> str:
    """
    Find the configuration file that rl-zoo3 takes if none is named.

    :param algo: rl-zoo3's name of an algorithm.
    :return: Path of the configuration file that rl-zoo3 takes if none is named.
    """
    import rl_zoo3

    package = Path(rl_zoo3.__file__).parent
    folder = package if (package / "hyperparams").is_dir() else package.parent
    return str(folder / "hyperparams" / f"{algo}.yml")


#: The callback under which a training is accelerated.
ACCELERATE = "sb3_sparse.Accelerate"
#: Entries of a section that rl-zoo3 reads itself; all others are arguments of the algorithm.
ZOO_ENTRIES = (
    *("callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps"),
    *("noise_std", "noise_type", "normalize", "vec_env_wrapper"),
)


def check_hyperparameters(algorithm: type, section: Mapping[str, Any]) -> None:
    """
    Refuse names that rl-zoo3 would hand on to an algorithm which does not know them, once environments and folders are made.

    :param algorithm: The algorithm.
    :param section: A section, with what the command line adds.
    :raises ValueError: Naming the first such entry.
    """
    known = [*list(inspect.signature(algorithm).parameters), *ZOO_ENTRIES]
    for name in section:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"hyperparameter {name!r} is unknown to {algorithm.__name__}{hint}; known are: {', '.join(known)}"
            )


def _load(configuration: str) -> Mapping[str, Any]:
    if configuration.endswith((".yml", ".yaml", ".py")) and not Path(configuration).is_file():
        raise FileNotFoundError(f"`conf-file` {configuration}: there is no such file")
    if configuration.endswith((".yml", ".yaml")):
        try:
            sections = yaml.safe_load(Path(configuration).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"`conf-file` {configuration} is not YAML: {error}") from error
        if not isinstance(sections, dict):
            raise ValueError(f"`conf-file` {configuration} has no sections of environments")
        return sections
    if configuration.endswith(".py"):
        variables: dict[str, Any] = {}
        exec(Path(configuration).read_text(), variables)
        return variables["hyperparams"]
    # rl-zoo3 takes apart what it imports, so this is another copy of the module
    spec = importlib.util.find_spec(configuration)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"`conf-file` {configuration!r} is neither a file (.yml, .yaml, .py) nor an importable module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hyperparams


def read_section(configuration: str, env: str) -> dict[str, Any]:
    """
    What a configuration says of an environment, as rl-zoo3 finds it.

    :param configuration: Path of a YAML or Python file, or name of a Python module.
    :param env: Id of the environment. One that is not listed gets ``atari`` if it is an Atari game, else ``default``.
    :return: A copy of the section.
    :raises FileNotFoundError: If there is no such configuration.
    :raises ValueError: If it is no YAML, or has nothing for the environment; the message lists what it has.
    """
    sections = _load(configuration)
    key = section_key(sections, env)
    if key is None:
        raise ValueError(f"`conf-file` {configuration} has no section for {env!r}; it has: {', '.join(map(str, sections))}")
    return plain(sections[key])


def accelerated(section: Mapping[str, Any]) -> dict[str, Any]:
    """
    Let a section's training be accelerated.

    :param section: A section.
    :return: A copy with the callback ``sb3_sparse.Accelerate`` before all others.
    """
    callbacks = section.get("callback")
    own = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
    present = ACCELERATE in own or any(isinstance(one, Mapping) and ACCELERATE in one for one in own)
    return {**section, "callback": plain(own if present else [ACCELERATE, *own])}


def as_yaml(env: str, section: Mapping[str, Any]) -> str:
    """
    Write a section as a configuration file.

    :param env: Id of the environment.
    :param section: Its section.
    :return: Text of a configuration file that holds it and nothing else.
    :raises ValueError: If an entry is nothing that YAML can hold.
    """
    for name, value in section.items():
        try:
            yaml.safe_dump(plain(value))
        except yaml.YAMLError as error:
            raise ValueError(f"`{name}`={value!r} cannot be written to a YAML file: write it as rl-zoo3's do") from error
    return yaml.safe_dump({env: plain(section)}, sort_keys=False, width=120)
