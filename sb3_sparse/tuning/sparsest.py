"""``sb3-sparse tune keep 0.97``: how sparse can it be? Answered in one line."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sb3_sparse.runs.result import COMPLETE, DIVERGED, RunResult
from sb3_sparse.runs.statistics import FEW_SEEDS, mean_interval, ratio_interval, seeds_without_spread
from sb3_sparse.runs.tables import interval, to_csv
from sb3_sparse.runs.training import check_trainable
from sb3_sparse.tuning.configuration import dense, with_sparsity
from sb3_sparse.tuning.export import write_configurations
from sb3_sparse.tuning.keep import (
    ACCEPTED,
    FIRST,
    FIRST_DENSE,
    UNDECIDED,
    Bisection,
    Decision,
    confirm,
    samples,
    with_floor,
)
from sb3_sparse.tuning.questions import KeepQuestion, Place
from sb3_sparse.tuning.results import MEASURES, known
from sb3_sparse.tuning.session import Session, make_subject, opened
from sb3_sparse.tuning.study import REPORT_SEED, Subject
from sb3_sparse.tuning.tables import training_row
from sb3_sparse.utils.checks import require_integer, require_positive
from sb3_sparse.utils.files import make_folder, write_text
from sb3_sparse.zoo.sections import as_yaml


@dataclass(frozen=True)
class Estimate:
    """
    How much of what dense has learnt a sparsity keeps, by trainings with the reporting seeds alone.

    :param sparsity: What was asked of the networks.
    :param kept: Fraction, NaN if dense has learnt nothing with these seeds.
    :param low: Lower end of its 95 % interval (Fieller), NaN if nothing is known.
    :param high: Upper end.
    """

    sparsity: float
    kept: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.kept):
            return "an unknown part"
        ends = interval(100 * self.low, 100 * self.high)
        return f"{100 * self.kept:.1f} % (95 % interval {'unbounded' if ends == '-' else ends})"


@dataclass(frozen=True)
class Kept:
    """
    The answer.

    :param line: In one line.
    :param sparsity: The one that was shown to keep enough, 0 if none was.
    :param estimate: What the line is about: that sparsity, else the one that comes nearest to it.
    :param decisions: Every test of the search, in order.
    :param confirmations: Every test with the reporting seeds, in order.
    :param configuration: YAML of what is recommended, for rl-zoo3: of the answer; else of the estimate if that seems to keep
        enough; else of the dense reference.
    :param files: What was written.
    """

    line: str
    sparsity: float
    estimate: Estimate
    decisions: list[Decision]
    confirmations: list[Decision]
    configuration: str
    files: list[Path]


class _Trainings:
    """Of sparsities (0 for the dense reference), by numbers of seeds: those that choose, and those that are reported."""

    def __init__(self, session: Session) -> None:
        self.session, self.subject = session, session.subject
        #: By whether it is reported, sparsity and number of the seed.
        self.results: dict[tuple[bool, float, int], RunResult] = {}

    def section(self, sparsity: float) -> dict[str, Any]:
        """What is trained."""
        subject = self.subject
        return with_sparsity(subject.section, subject.algo, sparsity) if sparsity else dense(subject.section, subject.algo)

    def run(self, wanted: Sequence[tuple[float, int]], *, report: bool = False) -> list[float]:
        """
        Train sparsities with seeds.

        :return: Returns, NaN where a training diverged.
        :raises ChildProcessError: If a training failed by anything else: that says nothing about its sparsity.
        """
        session, first = self.session, REPORT_SEED if report else self.subject.seed
        specs = [self.subject.run(self.section(sparsity), first + index, report=report) for sparsity, index in wanted]
        title = ("report, " if report else "") + " and ".join(f"{100 * s:g} % sparse" for s in sorted({s for s, _ in wanted}))
        results = session.run(specs, title) if specs else []
        for (sparsity, index), result in zip(wanted, results, strict=True):
            self.results[report, sparsity, index] = result
            if result.state not in (COMPLETE, DIVERGED):
                raise ChildProcessError(
                    f"the training of {100 * sparsity:g} % sparse with seed {result.spec.seed} failed: "
                    f"{result.reason[:500]}; see {session.driver.store.path(result.spec)}. This is no answer about sparsity: "
                    "mend it, and go on with --resume --retry"
                )
        return [result.mean for result in results]

    def reported(self, sparsity: float) -> list[RunResult]:
        """Its trainings with reporting seeds."""
        return [result for (report, asked, _), result in self.results.items() if report and asked == sparsity]

    def estimate(self, sparsity: float, floor: float) -> Estimate:
        """How much it keeps, by the reporting seeds."""
        others = [result.mean for result in self.reported(0.0) if result.state == COMPLETE]
        mine = with_floor([result.mean for result in self.reported(sparsity)], floor)
        if not others or not mine:
            return Estimate(sparsity, math.nan, math.nan, math.nan)
        return Estimate(sparsity, *ratio_interval(mine, others, floor=floor))

    def best_estimate(self, fraction: float, floor: float) -> Estimate:
        """Of the sparsest that seems to keep enough; else of the one that keeps most."""
        tried = sorted({asked for (report, asked, _) in self.results if report and asked}, reverse=True)
        estimates = [self.estimate(sparsity, floor) for sparsity in tried] or [Estimate(0.0, math.nan, math.nan, math.nan)]
        enough = [estimate for estimate in estimates if estimate.kept >= fraction]
        return enough[0] if enough else max(estimates, key=lambda one: -math.inf if math.isnan(one.kept) else one.kept)

    def table(self) -> str:
        """Every training as CSV."""
        return to_csv(
            [{"report": report, "asked": asked, **training_row(one)} for (report, asked, _), one in self.results.items()]
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(decision: Decision, verdict: str) -> str:
    limits = "its trainings diverge" if math.isnan(decision.low) else f"{decision.low:.1f} to {decision.high:.1f}"
    equal = ", equal returns" if decision.is_tied else ""
    return f"{100 * decision.sparsity:g} % sparse: {verdict} with {decision.seeds} seeds, margin {limits}{equal}"


def _check_range(subject: Subject, most: float) -> None:
    """Make the models that the search begins with."""
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in samples(most):
            section = with_sparsity(subject.section, subject.algo, sparsity)
            try:
                check_trainable(subject.algo, subject.env, section, Path(folder))
            except ValueError as error:
                raise ValueError(
                    f"{100 * sparsity:g} % sparse, where the search begins, cannot be trained: {error}"
                ) from error


def _check(question: KeepQuestion) -> Subject:
    require_positive("--keep", question.fraction, below=1)
    if require_positive("--confidence", question.confidence, below=1) < 0.5:
        raise ValueError(f"`--confidence` must be in [0.5, 1), got {question.confidence!r}")
    require_integer("--max-seeds", question.max_seeds, low=FIRST)
    require_integer("--trials", question.trials, low=FIRST_DENSE + FIRST)
    require_integer("--report-seeds", question.report_seeds, low=2)
    require_positive("--most", question.most, below=1)
    question.check(max(question.max_seeds, FIRST_DENSE))
    subject = make_subject(question, lambda section: with_sparsity(section, question.algo, question.most))
    _check_range(subject, question.most)
    return subject


def find_sparsest(question: KeepQuestion, place: Place | None = None) -> Kept:
    """
    Find the sparsest network that keeps a fraction of what the dense one has learnt, see :mod:`sb3_sparse.tuning.keep`. What a
    network has learnt is how far its return is above that of a policy that acts at random: 3 % of that is the same loss
    whether returns are positive or negative, and whatever constant the environment adds to them.

    :param question: What is asked.
    :param place: Folder, storage and processes.
    :return: The answer: an estimate in any case, and whether it was shown.
    :raises ValueError: For everything that is wrong, before anything is trained; and if the dense reference learns nothing.
    :raises FileNotFoundError: If there is no such ``conf_file``.
    :raises ImportError: If a package that the environment or the storage needs is not installed.
    :raises ChildProcessError: If worker processes end before they do anything, or a training fails and has not diverged.
    """
    subject = _check(question)
    if question.export_best is not None:
        make_folder("--export-best", question.export_best)
    place = place or Place()
    fraction, n_seeds = question.fraction, question.report_seeds
    with opened(subject, question, place) as session:
        trainer = _Trainings(session)
        bisection = Bisection(
            trainer.run,
            keep=fraction,
            floor=session.random_return(),
            confidence=question.confidence,
            budget=question.trials,
            max_seeds=question.max_seeds,
            most=question.most,
            batch=place.workers,
        )
        accepted = bisection.search()
        for decision in bisection.decisions:
            _say(_show(decision, decision.verdict))
        floor = session.random_return(report=True)
        report = partial(trainer.run, report=True)
        limits = {"keep": fraction, "floor": floor, "confidence": question.confidence}
        confirmations = confirm(report, accepted, n_seeds, **limits)
        for decision in confirmations:
            passed = decision.verdict == ACCEPTED
            _say(_show(decision, f"{'' if passed else 'not '}confirmed by the reporting seeds,"))
        shown = bool(confirmations) and confirmations[-1].verdict == ACCEPTED
        if not accepted and (candidate := bisection.likeliest()) is not None:
            # Nothing was shown, and what seems is estimated by seeds that have not chosen it
            report([(candidate, index) for index in range(n_seeds)])
        estimate = trainer.estimate(confirmations[-1].sparsity, floor) if shown else trainer.best_estimate(fraction, floor)
    line = _line(trainer, estimate, shown, limits, bisection, confirmations)
    files = [write_text(session.folder / "keep.csv", trainer.table())]
    recommended = estimate.sparsity if shown or estimate.kept >= fraction else 0.0
    configuration = as_yaml(subject.env, trainer.section(recommended))
    if question.export_best is not None:
        estimated = "An estimate, not shown: what came out" if recommended else "No answer: the dense reference"
        title = "The answer" if shown else estimated
        exported = {f"{subject.algo}.yml": (title, [line], configuration)}
        files += write_configurations(subject, Path(question.export_best), session.name, exported)
    answer = estimate.sparsity if shown else 0.0
    return Kept(line, answer, estimate, bisection.decisions, confirmations, configuration, files)


def _mean(results: Sequence[RunResult], floor: float | None = None) -> str:
    """Of trainings; those that diverged count as a floor, if there is one."""
    finite = [result.mean for result in results if result.state == COMPLETE]
    n_diverged = len(results) - len(finite)
    returns = finite if floor is None else with_floor([result.mean for result in results], floor)
    if not returns:
        return "diverged"
    mean, low, high = mean_interval(returns)
    diverged = f", {n_diverged} diverged" if n_diverged else ""
    few = ", few" if len(returns) < FEW_SEEDS else ""
    return f"{mean:.1f} (95 % interval {interval(low, high)}, {len(returns)} seeds{few}{diverged})"


def _why_none(bisection: Bisection, confirmations: Sequence[Decision], fraction: float, confidence: float) -> list[str]:
    """What stood in the way of an answer."""
    reasons = []
    undecided = sum(decision.verdict == UNDECIDED for decision in bisection.decisions)
    if undecided:
        reasons.append(f"{undecided} of {len(bisection.decisions)} sparsities undecided, more --max-seeds decide more")
    if confirmations:
        reasons.append(f"the {len(confirmations)} accepted not confirmed by the reporting seeds")
    if any(decision.is_tied and decision.verdict == UNDECIDED for decision in (*bisection.decisions, *confirmations)):
        needed = seeds_without_spread(fraction, confidence)
        reasons.append(
            "equal returns show no spread, and that failures are rare must be seen: this takes some "
            f"{needed} --max-seeds and --report-seeds"
        )
    return reasons


def _line(
    trainer: _Trainings,
    estimate: Estimate,
    shown: bool,
    limits: Mapping[str, float],
    bisection: Bisection,
    confirmations: Sequence[Decision],
) -> str:
    subject, floor, mine = trainer.subject, limits["floor"], trainer.reported(estimate.sparsity) if estimate.sparsity else []
    where = f"{subject.algo} on {subject.env}, {subject.section['n_timesteps']:,} steps"
    # As they were tested: what diverged counts as random, but does not make the reference worse
    of_dense = f"dense {_mean(trainer.reported(0.0))}, random {floor:.1f}"
    claim = f"to keep {100 * limits['keep']:g} % at {100 * limits['confidence']:g} % confidence"
    notes = [] if shown else _why_none(bisection, confirmations, limits["keep"], limits["confidence"])
    if bisection.is_cut_short:
        low, high = (f"{100 * sparsity:g}" for sparsity in bisection.bracket)
        notes.append(f"--trials ended the search between {low} and {high} % sparse")
    elif shown and estimate.sparsity == bisection.most:
        notes.append("sparser was not tried")
    rest = "".join(f"; {note}" for note in notes)
    complete = [known(result) for result in mine if result.state == COMPLETE]
    if not complete:
        asked = f"{100 * estimate.sparsity:g} % sparse diverges" if estimate.sparsity else "no sparsity could be estimated"
        return f"{where}: {asked}: no sparsity was shown {claim} ({of_dense}){rest}"
    costs = {name: median(one[name] for one in complete) for name in MEASURES}
    return (
        f"{where}: {100 * costs['sparsity']:.1f} % sparse keeps {estimate} of what dense has learnt, "
        f"{'shown' if shown else 'an estimate, no sparsity was shown'} {claim}: "
        f"{costs['flops']:,.0f} FLOPs ({costs['dense_flops'] / costs['flops']:.1f}x fewer), "
        f"{costs['bytes']:,.0f} bytes ({costs['dense_bytes'] / costs['bytes']:.1f}x fewer), "
        f"return {_mean(mine, floor)}; {of_dense}{rest}"
    )


def keep(algo: str, env: str, fraction: float, *, place: Place | None = None, **options: Any) -> Kept:
    """
    Find the sparsest configuration: :func:`find_sparsest`, called with separate arguments.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param fraction: To keep, in (0, 1).
    :param place: Folder, storage and processes.
    :param options: See :class:`~sb3_sparse.tuning.questions.KeepQuestion`.
    :return: The answer.
    """
    return find_sparsest(KeepQuestion(algo=algo, env=env, fraction=fraction, **options), place)
