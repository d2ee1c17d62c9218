"""What a user may ask of sparsity (``policy_kwargs``), checked as far as possible without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sb3_sparse.masks.distributions import DISTRIBUTION_HELP
from sb3_sparse.masks.patterns import Pattern, parse_pattern
from sb3_sparse.utils.checks import is_integer, is_number, require_choice

#: Sparsity of every network when nothing is said. Graesser et al. (ICML 2022) find 80-90 % nearly free for trained
#: topologies, Ma et al. (ICML 2025) train static random networks at 80 %; a static topology deserves the cautious end.
DEFAULT_SPARSITY = 0.8
#: Distribution when nothing is said: Graesser et al. (ICML 2022) find ERK far better than uniform. For MLPs it equals ER.
DEFAULT_DISTRIBUTION = "erk"

INITIAL_MASKS = ("random", "magnitude")
ENGINES = ("auto", "native", "torch")


def check_sparsity(value: Any, where: str) -> float:
    """
    Check a sparsity.

    :param value: What was given as a sparsity.
    :param where: How the error names it.
    :return: The value as a float.
    :raises ValueError: If it is not a number in [0, 1).
    """
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{where} must be a number in [0, 1), got {value!r}")
    return float(value)


def _check_epsilon(value: Any, where: str) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(f"{where} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class SparsityConfig:
    """
    The sparse half of ``policy_kwargs``: plain JSON values, checked here as far as possible without a network.

    :param sparsity: Fraction of the weights that are zero, in [0, 1): one number for every network or a map from network
        to number, where networks that are not named stay dense. None: follows from an ``N:M`` pattern or an explicit
        distribution, otherwise :data:`DEFAULT_SPARSITY`.
    :param distribution: ``"uniform"``, ``"er"``, ``"erk"``, a map from layer name to sparsity, or ``{"er_epsilon": ...}``
        with a list of epsilons by depth or a map from layer name to epsilon (DS-TD3). Layers that an explicit map or list
        leaves out stay dense. None: uniform with an ``N:M`` pattern, otherwise :data:`DEFAULT_DISTRIBUTION`.
    :param pattern: ``"unstructured"``, ``"N:M"`` or ``"block:RxC"``.
    :param dense_layers: ``"first"``, ``"last"``, a layer name, or a list of these: layers that stay dense for good. Names
        may be shell patterns such as ``"critic.qf*.0"``.
    :param initial_mask: ``"random"`` or ``"magnitude"`` (largest initial weights, as RLx2's code does).
    :param mask_seed: Seed of the masks' own generator, in [0, 2**63). None: derived from torch's generator state, without
        drawing from it, so it follows the model's ``seed``.
    :param engine: What multiplies: ``"torch"``, ``"native"`` (compiled kernels on the CPU), or ``"auto"``: whatever was
        measured to be faster, see :class:`~sb3_sparse.engine.choice.Choice`.
    :raises ValueError: If an argument is outside of what is described here, naming it, its value and what is allowed.
    """

    sparsity: float | Mapping[str, float] | None = None
    distribution: str | Mapping[str, Any] | None = None
    pattern: str = "unstructured"
    dense_layers: str | Sequence[str] = ()
    initial_mask: str = "random"
    mask_seed: int | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, Mapping):
            for network, value in self.sparsity.items():
                check_sparsity(value, f"`sparsity` of network {network!r}")
        elif self.sparsity is not None:
            check_sparsity(self.sparsity, "`sparsity`")
        pattern = parse_pattern(self.pattern)
        self._check_distribution(pattern)
        names = [self.dense_layers] if isinstance(self.dense_layers, str) else self.dense_layers
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'`dense_layers` must be "first", "last", a layer name or a list of these, got {names!r}')
        require_choice("initial_mask", self.initial_mask, INITIAL_MASKS)
        require_choice("engine", self.engine, ENGINES)
        seed = self.mask_seed
        if seed is not None and not (is_integer(seed) and 0 <= seed < 2**63):
            raise ValueError(f"`mask_seed` must be None or an integer in [0, 2**63), got {seed!r}")

    def _check_distribution(self, pattern: Pattern) -> None:
        distribution = self.distribution
        if isinstance(distribution, Mapping):
            if not distribution:
                raise ValueError(f"`distribution` must be {DISTRIBUTION_HELP}, got an empty map")
            if self.sparsity is not None:
                raise ValueError(
                    f"`sparsity`={self.sparsity!r} and an explicit `distribution` are both given: "
                    "the sparsity follows from the distribution, leave it out"
                )
            if "er_epsilon" in distribution:
                self._check_epsilons(distribution)
                if pattern.fixed_sparsity is not None:
                    raise ValueError(
                        f"`distribution`=er_epsilon cannot be used with `pattern`={self.pattern!r}: it is uniform"
                    )
            else:
                for name, value in distribution.items():
                    check_sparsity(value, f"`distribution` of layer {name!r}")
        elif distribution not in (None, "uniform", "er", "erk"):
            raise ValueError(f"`distribution` must be {DISTRIBUTION_HELP}, got {distribution!r}")
        elif pattern.fixed_sparsity is not None and distribution in ("er", "erk"):
            raise ValueError(
                f"`distribution`={distribution!r} cannot be used with `pattern`={self.pattern!r}, which gives every layer "
                'the same sparsity: use "uniform" or leave it out'
            )

    @staticmethod
    def _check_epsilons(distribution: Mapping[str, Any]) -> None:
        epsilons = distribution["er_epsilon"]
        if len(distribution) > 1 or not isinstance(epsilons, (Mapping, Sequence)) or isinstance(epsilons, str) or not epsilons:
            raise ValueError(
                '`distribution` with "er_epsilon" takes a list of epsilons by depth or a map from layer name to epsilon and '
                f"nothing beside it, got {dict(distribution)!r}"
            )
        if isinstance(epsilons, Mapping):
            for name, value in epsilons.items():
                _check_epsilon(value, f"er_epsilon of layer {name!r}")
        else:
            for depth, value in enumerate(epsilons):
                if value is not None:
                    _check_epsilon(value, f"er_epsilon at depth {depth}")

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """Names of the sparse ``policy_kwargs``."""
        return tuple(field.name for field in fields(cls))

    def as_kwargs(self) -> dict[str, Any]:
        """The arguments as they were given."""
        return {name: getattr(self, name) for name in self.argument_names()}
