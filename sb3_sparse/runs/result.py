"""What came of a training, as JSON holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from sb3_sparse.runs.spec import RunSpec

COMPLETE, DIVERGED, FAILED = STATES = ("complete", "diverged", "failed")
#: Of the file's contents.
_FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """
    One evaluation.

    :param step: Environment steps of training before it.
    :param returns: Return of each episode.
    :param lengths: Environment steps of each episode.
    :param costs: See :func:`sb3_sparse.runs.costs.costs`, without the latency.
    """

    step: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    costs: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean return."""
        return fmean(self.returns)


@dataclass(frozen=True)
class RunResult:
    """
    What came of a training.

    :param spec: The training.
    :param state: ``"complete"``, ``"diverged"`` (a NaN or an infinity) or ``"failed"`` (by anything else).
    :param evaluations: In order; the last one is that of the end, if the training is complete.
    :param costs: Of the agent at the end, see :func:`sb3_sparse.runs.costs.costs`, and ``latency`` in microseconds.
    :param inputs: How many weights look at each input, by network; empty for images and dicts.
    :param seconds: Wall time of the training, without evaluations.
    :param reason: Why it has not been completed, in one line.
    :param traceback: The same at length.
    :param versions: Of the packages that matter, the engine and the processor.
    """

    spec: RunSpec
    state: str
    evaluations: tuple[Evaluation, ...] = ()
    costs: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = math.nan
    reason: str = ""
    traceback: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean return of the evaluation at the end; NaN if the training was not completed."""
        return self.evaluations[-1].mean if self.state == COMPLETE else math.nan

    def at(self, step: int) -> Evaluation:
        """
        Look up an evaluation.

        :param step: A checkpoint.
        :return: The evaluation there.
        """
        return self.evaluations[self.spec.checkpoints.index(step)]

    def to_json(self) -> str:
        """
        Write it down.

        :return: The text of a file; numbers that are not finite are null.
        """
        values = {"format": _FORMAT, **asdict(self), "spec": self.spec.to_json()}
        return json.dumps(_finite(values), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """
        Read it again.

        :param text: What :meth:`to_json` gave.
        :return: The result.
        :raises ValueError: If it is anything else.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("format") != _FORMAT:
                raise ValueError("it is of another version of sb3-sparse")
            return cls(**{**values, **_restored(values)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no result of a training: {error!r}") from error


def _restored(values: Mapping[str, Any]) -> dict[str, Any]:
    evaluations = tuple(
        Evaluation(
            step=one["step"], returns=tuple(map(_number, one["returns"])), lengths=tuple(one["lengths"]), costs=one["costs"]
        )
        for one in values["evaluations"]
    )
    seconds = _number(values["seconds"])
    if values["state"] not in STATES:
        raise ValueError(f"`state` is {values['state']!r}")
    return {"spec": RunSpec.from_json(values["spec"]), "evaluations": evaluations, "seconds": seconds}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
