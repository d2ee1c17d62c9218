"""Which engine runs a sequence of layers: what the user said, what there is, and what was measured to be faster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sb3_sparse.engine import native
from sb3_sparse.engine.crossover import crossovers
from sb3_sparse.masks.config import ENGINES
from sb3_sparse.utils.checks import require_choice

if TYPE_CHECKING:
    from sb3_sparse.engine.sequence import SparseSequential

#: Environment variable that says which engine to use.
VARIABLE = "SB3_SPARSE_ENGINE"
#: The native engine must be at least this much faster to be chosen.
_MARGIN = 1.05


def requested_engine(engine: str) -> str:
    """
    What is asked for, the environment considered.

    :param engine: ``"auto"``, ``"native"`` or ``"torch"``.
    :return: The same, or the value of ``SB3_SPARSE_ENGINE``, which wins: a saved model brings its argument along.
    :raises ValueError: For another name, in the argument or in the variable.
    :raises ImportError: For ``"native"`` where it was not built.
    """
    require_choice("engine", engine, ENGINES)
    if os.environ.get(VARIABLE):
        engine = require_choice(VARIABLE, os.environ[VARIABLE], ENGINES)
    if engine == "native" and not native.available():
        raise ImportError(f"`engine`='native': {native.why_not()}")
    return engine


def describe_engine(engine: str) -> str:
    """
    Describe an engine for people.

    :param engine: The engine a policy was given.
    :return: What that means here and now, for people.
    """
    engine = requested_engine(engine)
    if engine == "torch" or not native.available():
        return "torch" if engine == "torch" else "torch (the native engine was not built)"
    return f"{engine} ({native.instruction_set()} kernels)"


class Choice:
    """
    The choice of one policy.

    :param engine: ``"native"``: always, wherever the kernels can run a sequence. ``"torch"``: never. ``"auto"``: where
        something is pruned and the kernels were measured to be faster on this machine, for sequences of these sizes and this
        density; at sparsity 0 torch runs, bit for bit as without this package.
    :raises ValueError: For another name.
    :raises ImportError: For ``"native"`` where it was not built.
    """

    def __init__(self, engine: str) -> None:
        self.engine = requested_engine(engine)
        #: Whether the kernels come into question at all.
        self.possible = self.engine != "torch" and native.available()
        if self.engine == "auto" and not native.available():
            native.notice(f"sb3_sparse uses torch's dense kernels: {native.why_not()}")

    def is_native(self, sequence: SparseSequential, n_samples: int) -> bool:
        """
        Decide whether the kernels run a sequence.

        :param sequence: A sequence that the kernels can run.
        :param n_samples: Size of the batch.
        :return: Whether they shall.
        """
        if self.engine == "native":
            return True
        if all(layer.n_active == layer.weight.numel() for layer in sequence.layers):
            return False
        return crossovers().ratio(sequence, n_samples) >= _MARGIN
