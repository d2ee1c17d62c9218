"""Writing rl-zoo3's configuration files; :mod:`sb3_sparse.zoo.sections` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_sparse.utils.files import write_text
from sb3_sparse.zoo.sections import as_yaml, read_section, zoo_configuration

__all__ = ["as_yaml", "read_section", "write_section", "zoo_configuration"]


def write_section(file: Path, env: str, section: Mapping[str, Any]) -> None:
    """
    Write a configuration file for rl-zoo3's ``-conf``, all of it or nothing.

    :param file: Where to; its folder is made.
    :param env: Id of the environment.
    :param section: Its section.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, as_yaml(env, section))
