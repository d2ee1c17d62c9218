"""Which package brings an environment: what is missing is said before any work, with the command that installs it."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec

_MUJOCO = "Ant|HalfCheetah|Hopper|Humanoid(Standup)?|Inverted(Double)?Pendulum|Pusher|Reacher|Swimmer|Walker2d"
#: Extra of this package, modules it brings, and the environments that need them.
_FAMILIES = (
    ("atari", {"ale_py": "ale-py", "cv2": "OpenCV"}, re.compile(r"ALE/|.*(NoFrameskip|Deterministic)-v\d")),
    ("box2d", {"Box2D": "Box2D"}, re.compile(r"(LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing)-v\d")),
    ("mujoco", {"mujoco": "MuJoCo"}, re.compile(rf"({_MUJOCO})-v[45]")),
)


def require_packages(env_id: str) -> None:
    """
    Refuse an environment whose packages are not installed, and register Atari games, which gymnasium does not know by itself.

    :param env_id: Id of the environment. Of one that belongs to no known family nothing is asked.
    :raises ImportError: If a package is missing; the message says what to install.
    """
    for extra, modules, pattern in _FAMILIES:
        if pattern.match(env_id) is None:
            continue
        missing = [name for module, name in modules.items() if find_spec(module) is None]
        if missing:
            raise ImportError(
                f"environment {env_id!r} needs {' and '.join(missing)}, which is not installed: "
                f"pip install 'sb3-sparse[{extra}]'"
            )
        if extra == "atari":
            import_module("ale_py")  # importing it registers the games
