"""Where the presets are: ``hyperparams/<method>/<algo>.yml``, in the repository and in the installed package."""

from __future__ import annotations

from pathlib import Path


def presets_folder() -> Path:
    """
    :return: The folder of all presets: inside the package when installed, beside it in a checkout.
    """
    package = Path(__file__).parent
    installed = package / "hyperparams"
    return installed if installed.is_dir() else package.parent / "hyperparams"


def preset_file(method: str, algo: str) -> Path:
    """
    The rl-zoo3 configuration of a method for an algorithm.

    :param method: Name of the method, e.g. ``"static"``.
    :param algo: rl-zoo3's name of the algorithm, e.g. ``"td3"``.
    :return: Path of the YAML file.
    :raises ValueError: For an unknown method, or an algorithm it has no preset for; the message lists what there is.
    """
    folder = presets_folder()
    available: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.yml")):
        available.setdefault(file.parent.name, []).append(file.stem)
    if method not in available:
        raise ValueError(f"`method`={method!r} is unknown; the methods are: {', '.join(available)}")
    if algo not in available[method]:
        known = ", ".join(available[method])
        raise ValueError(f"`algo`={algo!r} has no preset for method {method!r}; it has presets for: {known}")
    return folder / method / f"{algo}.yml"
