"""What came out of a study: its trials, its front, and the front again with the seeds that are reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import optuna
import yaml
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from sb3_sparse.runs.result import COMPLETE, DIVERGED, RunResult
from sb3_sparse.runs.statistics import mean_interval
from sb3_sparse.runs.store import Store
from sb3_sparse.tuning.jobs import CONFIGURATION, JOB, REASON, by_job, is_over, was_killed
from sb3_sparse.tuning.objectives import LATENCY, RETURN
from sb3_sparse.tuning.pareto import front
from sb3_sparse.tuning.study import REFERENCE, Subject

#: What is known of a trained configuration besides its return.
MEASURES = ("sparsity", "flops", "bytes", "parameters", "latency", "dense_flops", "dense_bytes", "dense_parameters", "seconds")
#: What was reported of a trial, by its number.
Reports = Mapping[int, Sequence[RunResult]]


@dataclass(frozen=True)
class Row:
    """
    A configuration that a study has tried, and what was reported of it.

    :param number: Number of its trial.
    :param is_dense: Whether it is the dense reference.
    :param state: ``"complete"``, ``"diverged"``, ``"failed"``, ``"killed"``, ``"running"`` or ``"waiting"``.
    :param reason: Why it failed, if it did.
    :param tuned: Return, if it is complete: the mean over the trainings that choose.
    :param measures: Everything in :data:`MEASURES`, if it is complete: of the trainings that are reported medians, else of
        those that choose.
    :param parameters: What was sampled.
    :param configuration: The YAML that was trained, once it is known.
    :param returns: One for each training with a reporting seed; empty if there were none.
    :param n_failed: Such trainings that failed.
    :param on_front: Whether no other configuration that is reported dominates it by these numbers. One with failed trainings,
        whose return is that of the others, keeps none without from the front.
    :param is_awaited: Whether others are reported and this one is not yet: what it was chosen by is no match for theirs.
    """

    number: int
    is_dense: bool
    state: str
    reason: str
    tuned: float
    measures: dict[str, float]
    parameters: dict[str, Any]
    configuration: str
    returns: tuple[float, ...] = ()
    n_failed: int = 0
    on_front: bool = True
    is_awaited: bool = False

    @property
    def section(self) -> dict[str, Any]:
        """The configuration."""
        (section,) = yaml.safe_load(self.configuration).values()
        return section

    @property
    def mean(self) -> float:
        """Mean return over the reporting seeds; without any, the one that chose it."""
        return fmean(self.returns) if self.returns else self.tuned

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """
        Give the mean's interval.

        :param confidence: Coverage.
        :return: Ends of the mean's interval, NaN with fewer than two reporting seeds.
        """
        return mean_interval(self.returns, confidence)[1:] if self.returns else (math.nan, math.nan)


def tried(study: optuna.Study) -> list[Row]:
    """
    List what a study has tried.

    :param study: A study.
    :return: All its jobs, in order.
    """
    jobs = by_job(study.get_trials(deepcopy=False)).values()
    return sorted(map(_row, jobs), key=lambda row: row.number)


def _row(trials: Sequence[FrozenTrial]) -> Row:
    trial = trials[-1]
    attributes, state = trial.user_attrs, trial.state.name.lower()
    reason = " ".join(str(attributes.get(REASON, "")).split())
    if was_killed(trial):
        state, reason = "killed", f"its driver vanished{f' {len(trials)} times' * is_over(trials)}"
    elif trial.state == TrialState.FAIL:
        state = DIVERGED if reason.startswith(DIVERGED) else "failed"
    complete = trial.state == TrialState.COMPLETE
    return Row(
        number=trial.number,
        is_dense=attributes[JOB] == REFERENCE,
        state=state,
        reason=reason,
        tuned=attributes[RETURN] if complete else math.nan,
        measures={name: attributes[name] for name in MEASURES} if complete else {},
        parameters=dict(trial.params),
        configuration=attributes.get(CONFIGURATION, ""),
    )


def known(result: RunResult) -> dict[str, float]:
    """
    Everything in :data:`MEASURES` of a training.

    :param result: What came of it.
    :return: By name, NaN where nothing is known.
    """
    return {**{name: result.costs.get(name, math.nan) for name in MEASURES}, "seconds": result.seconds}


def _front(subject: Subject, rows: Sequence[Row]) -> list[Row]:
    """The rows that no other dominates by its mean and its measures."""
    points = []
    for row in rows:
        # Less is better
        values = {**row.measures, RETURN: -row.mean}
        points.append([values[name] for name in subject.objectives])
    return [rows[index] for index in front(points)]


def tuning_front(subject: Subject, rows: Sequence[Row]) -> list[Row]:
    """
    Find the front by the trainings that choose.

    :param subject: What the study is about.
    :param rows: Its jobs.
    :return: Those that no other dominates by the trainings that choose, cheapest first.
    """
    best = _front(subject, [row for row in rows if row.state == "complete"])
    return sorted(best, key=lambda row: row.measures[subject.objectives[1]])


def reports(subject: Subject, rows: Sequence[Row], store: Store, n_seeds: int) -> dict[int, list[RunResult]]:
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
        index = 0
        while row.state == "complete":
            result = store.get(subject.reports(row.section, index + 1)[-1])
            if result is not None:
                found.setdefault(row.number, []).append(result)
            elif index >= n_seeds:
                break
            index += 1
    return found


def reported_rows(subject: Subject, rows: Sequence[Row], again: Reports) -> list[Row]:
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


def points(subject: Subject, rows: Sequence[Row], again: Reports, latencies: Mapping[int, float] | None = None) -> list[Row]:
    """
    The front and the dense reference, as they are reported.

    :param subject: What the study is about.
    :param rows: Jobs of the search.
    :param again: What was reported; empty if nothing was trained again.
    :param latencies: By number of the trial, measured on a quiet machine, in the place of what workers measured.
    :return: Cheapest first, with all that was reported earlier. Not on the front are a configuration whose trainings all
        failed and, where there is a report, one that is not in it yet.
    """
    found: list[Row] = []
    for row in reported_rows(subject, rows, again):
        mine = again.get(row.number, [])
        good = [other for other in mine if other.state == COMPLETE]
        measures = {name: median(known(other)[name] for other in good) for name in MEASURES} if good else row.measures
        if latencies is not None and row.number in latencies:
            measures = {**measures, LATENCY: latencies[row.number]}
        returns = tuple(other.mean for other in good)
        is_awaited = bool(again) and not mine
        found.append(replace(row, measures=measures, returns=returns, n_failed=len(mine) - len(good), is_awaited=is_awaited))
    standing = [row for row in found if row.returns or not again]
    sound = [row for row in standing if not row.n_failed]
    kept = {row.number for some in (standing, sound) for row in _front(subject, some)}
    found = [replace(row, on_front=row.number in kept) for row in found]
    return sorted(found, key=lambda row: (row.measures[subject.objectives[1]], row.number))


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
            sign = -1.0 if name == RETURN else 1.0

            def target(trial: FrozenTrial, index: int = index, sign: float = sign) -> float:
                return sign * trial.values[index]

            found[name] = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target)
        found["front"] = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return found
