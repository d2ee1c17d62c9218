"""What came out of a study: its trials, its front, and the front again with the seeds that are reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import optuna
import yaml
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from sb3_sparse.runs.result import COMPLETE, RunResult
from sb3_sparse.runs.statistics import mean_interval
from sb3_sparse.runs.store import Store
from sb3_sparse.tuning.jobs import REASON, by_job, is_over, outcome, was_killed
from sb3_sparse.tuning.objectives import OBJECTIVES, RETURN
from sb3_sparse.tuning.pareto import front
from sb3_sparse.tuning.study import REFERENCE, Subject

#: What is known of a trained configuration besides its return.
MEASURES = ("sparsity", "flops", "bytes", "parameters", "latency", "dense_flops", "dense_bytes", "dense_parameters", "seconds")
_STATES = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}


@dataclass(frozen=True)
class Tried:
    """
    A job of a study.

    :param number: Number of its trial.
    :param is_dense: Whether it is the dense reference.
    :param state: ``"complete"``, ``"diverged"``, ``"failed"``, ``"killed"``, ``"running"`` or ``"waiting"``.
    :param reason: Why it failed, if it did.
    :param mean: Return, if it is complete: the mean over the trainings that choose.
    :param measures: Everything in :data:`MEASURES`, if it is complete.
    :param parameters: What was sampled.
    :param configuration: The YAML that was trained, once it is known.
    :param attributes: The trial's.
    """

    number: int
    is_dense: bool
    state: str
    reason: str
    mean: float
    measures: dict[str, float]
    parameters: dict[str, Any]
    configuration: str
    attributes: dict[str, Any] = field(repr=False)


def _tried(trials: Sequence[FrozenTrial]) -> Tried:
    trial = outcome(trials)
    attributes, reason = trial.user_attrs, str(trial.user_attrs.get(REASON, ""))
    if trial.state in _STATES:
        state = _STATES[trial.state]
    elif was_killed(trial):
        # Waiting for another attempt, or not
        state, reason = "killed", f"its driver vanished {len(trials)} times" if is_over(trials) else "its driver vanished"
    else:
        state = "diverged" if reason.startswith("diverged") else "failed"
    complete = state == "complete"
    return Tried(
        number=trial.number,
        is_dense=bool(attributes.get(REFERENCE)),
        state=state,
        reason=" ".join(reason.split()),
        mean=attributes[RETURN] if complete else math.nan,
        measures={name: attributes[name] for name in MEASURES} if complete else {},
        parameters=dict(trial.params),
        configuration=attributes.get("configuration", ""),
        attributes=dict(attributes),
    )


def tried(study: optuna.Study) -> list[Tried]:
    """
    List what a study has tried.

    :param study: A study.
    :return: All its jobs, in order.
    """
    return sorted((_tried(trials) for trials in by_job(study.get_trials(deepcopy=False)).values()), key=lambda row: row.number)


def minimised(subject: Subject, mean: float, measures: dict[str, float]) -> tuple[float, ...]:
    """
    Turn objectives so that less is better.

    :param subject: What the study is about.
    :param mean: Return.
    :param measures: All others.
    :return: The study's objectives, each so that less is better.
    """
    values = {**measures, RETURN: mean}
    return tuple(-values[name] if OBJECTIVES[name].maximize else values[name] for name in subject.objectives)


def tuning_front(subject: Subject, rows: Sequence[Tried]) -> list[Tried]:
    """
    Find the front by the trainings that choose.

    :param subject: What the study is about.
    :param rows: Its jobs.
    :return: Those that no other dominates by the trainings that choose, cheapest first.
    """
    complete = [row for row in rows if row.state == "complete"]
    best = [complete[index] for index in front([minimised(subject, row.mean, row.measures) for row in complete])]
    return sorted(best, key=lambda row: row.measures[subject.objectives[1]])


@dataclass(frozen=True)
class Point:
    """
    A configuration of the front, or the dense reference.

    :param row: The trial that found it.
    :param returns: One for each training with a reporting seed; empty if there were none.
    :param n_failed: Such trainings that failed.
    :param measures: Of these trainings: medians; of the trial if there were none.
    :param on_front: Whether no other configuration that is reported dominates it by these numbers. One with failed trainings,
        whose return is that of the others, keeps none without from the front.
    :param is_awaited: Whether others are reported and this one is not yet: what it was chosen by is no match for theirs.
    """

    row: Tried
    returns: tuple[float, ...]
    n_failed: int
    measures: dict[str, float]
    on_front: bool = True
    is_awaited: bool = False

    @property
    def is_reported(self) -> bool:
        """Whether a training with a reporting seed has ended."""
        return bool(self.returns or self.n_failed)

    @property
    def mean(self) -> float:
        """Mean return over the reporting seeds; without any, the one that chose it."""
        return fmean(self.returns) if self.returns else self.row.mean

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """
        Give the mean's interval.

        :param confidence: Coverage.
        :return: Ends of the mean's interval, NaN with fewer than two seeds.
        """
        return mean_interval(self.returns, confidence)[1:] if self.returns else (math.nan, math.nan)


#: What was reported of a trial, by its number.
Reports = Mapping[int, Sequence[RunResult]]


def section_of(subject: Subject, row: Tried) -> dict[str, Any]:
    """
    Read what a trial trained.

    :param subject: What the study is about.
    :param row: The trial.
    :return: Its configuration.
    """
    return yaml.safe_load(row.configuration)[subject.env]


def reports(subject: Subject, rows: Sequence[Tried], store: Store, n_seeds: int) -> dict[int, list[RunResult]]:
    """
    Find what was reported, now and earlier.

    :param subject: What the study is about.
    :param rows: Its trials.
    :param store: Where results lie.
    :param n_seeds: How many trainings are wanted of each; more that are there are found too.
    :return: By number of the trial, of those that have any.
    """
    found: dict[int, list[RunResult]] = {}
    for row in rows:
        index, mine = 0, []
        while row.state == "complete":
            result = store.get(subject.reports(section_of(subject, row), index + 1)[-1])
            if result is None and index >= n_seeds:
                break
            mine += [] if result is None else [result]
            index += 1
        if mine:
            found[row.number] = mine
    return found


def reported_rows(subject: Subject, rows: Sequence[Tried], again: Reports) -> list[Tried]:
    """
    Which trials a report shows: the front, the dense reference, and what was reported earlier.

    :param subject: What the study is about.
    :param rows: Jobs of the search.
    :param again: What was reported.
    :return: Those that are complete.
    """
    asked = [row for row in rows if row.is_dense or row.number in again]
    chosen = {row.number: row for row in [*tuning_front(subject, rows), *asked] if row.state == "complete"}
    return list(chosen.values())


def points(
    subject: Subject, rows: Sequence[Tried], again: Reports, latencies: Mapping[int, float] | None = None
) -> list[Point]:
    """
    The front and the dense reference, as they are reported.

    :param subject: What the study is about.
    :param rows: Jobs of the search.
    :param again: What was reported; empty if nothing was trained again.
    :param latencies: By number of the trial, measured on a quiet machine, in the place of what workers measured.
    :return: Cheapest first, with all that was reported earlier. Not on the front are a configuration whose trainings all
        failed and, where there is a report, one that is not in it yet.
    """
    found: list[Point] = []
    for row in reported_rows(subject, rows, again):
        mine = again.get(row.number, [])
        good = [other for other in mine if other.state == COMPLETE]
        measures = {name: median(known(other)[name] for other in good) for name in MEASURES} if good else dict(row.measures)
        if latencies is not None and row.number in latencies:
            measures["latency"] = latencies[row.number]
        is_awaited = bool(again) and not mine
        stands = bool(good) or not again
        found.append(Point(row, tuple(other.mean for other in good), len(mine) - len(good), measures, stands, is_awaited))
    standing = [point for point in found if point.on_front]
    sound = [point for point in standing if not point.n_failed]
    kept = {
        id(some[index])
        for some in (standing, sound)
        for index in front([minimised(subject, point.mean, point.measures) for point in some])
    }
    found = [replace(point, on_front=id(point) in kept) for point in found]
    return sorted(found, key=lambda point: (point.measures[subject.objectives[1]], point.row.number))


def known(result: RunResult) -> dict[str, float]:
    """
    Everything in :data:`MEASURES` of a training.

    :param result: A complete result.
    :return: By name.
    """
    return {**{name: result.costs.get(name, math.nan) for name in MEASURES}, "seconds": result.seconds}


def importances(study: optuna.Study, subject: Subject) -> dict[str, dict[str, float]]:
    """
    How much each sampled parameter decides about reaching the best tenth of the trials (PED-ANOVA, Watanabe et al. 2023, by
    Optuna): by objective, and for the front as a whole.

    :param study: The study.
    :param subject: What it is about.
    :return: Fractions that sum to 1 by parameter, by objective and ``"front"``; empty with fewer than two complete trials.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if sum(bool(trial.params) for trial in complete) < 2:
        return {}
    found = {}
    with warnings.catch_warnings():
        # Few trials, and that low targets are the good ones, which is so here
        warnings.simplefilter("ignore")
        for index, name in enumerate(subject.objectives):
            sign = -1.0 if OBJECTIVES[name].maximize else 1.0

            def target(trial: FrozenTrial, index: int = index, sign: float = sign) -> float:
                return sign * trial.values[index]

            found[name] = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target)
        found["front"] = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return found
