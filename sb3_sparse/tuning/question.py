"""``sb3-sparse tune --keep 0.97``: how sparse can it be? Answered in one line."""

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

from sb3_sparse.tuning.configuration import dense, load_section, with_sparsity
from sb3_sparse.tuning.export import export_answer
from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.intervals import mean_interval, seeds_without_spread
from sb3_sparse.tuning.keep import (
    ACCEPTED,
    FIRST,
    FIRST_DENSE,
    MOST,
    UNDECIDED,
    Bisection,
    Decision,
    confirm,
    samples,
    with_floor,
)
from sb3_sparse.tuning.queue import Job
from sb3_sparse.tuning.results import MEASURES, Tried
from sb3_sparse.tuning.session import Place, Session, make_subject
from sb3_sparse.tuning.study import REPORT_EPISODES, REPORT_SEED, Subject
from sb3_sparse.tuning.tables import to_csv
from sb3_sparse.tuning.training import check_trainable
from sb3_sparse.tuning.tune import check_reporting
from sb3_sparse.utils.checks import require_integer, require_positive
from sb3_sparse.utils.files import make_folder, write_text


@dataclass(frozen=True)
class Kept:
    """
    The answer.

    :param line: In one line.
    :param sparsity: What was asked of the networks, 0 if no sparsity passed.
    :param decisions: Every test of the search, in order.
    :param confirmations: Every test with the reporting seeds, in order.
    :param configuration: YAML of the answer, for rl-zoo3.
    :param files: What was written.
    """

    line: str
    sparsity: float
    decisions: list[Decision]
    confirmations: list[Decision]
    configuration: str
    files: list[Path]


class _Trainer:
    """Trains sparsities with seeds in a session's study, and with the reporting seeds in its report."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.rows: dict[str, Tried] = {}

    def configuration(self, sparsity: float) -> str:
        """
        :param sparsity: 0 for the dense reference.
        :return: What is trained, as YAML.
        """
        subject = self.session.subject
        section = with_sparsity(subject.section, subject.algo, sparsity) if sparsity else dense(subject.section, subject.algo)
        return as_yaml(subject.env, section)

    def run(self, wanted: Sequence[tuple[float, int]], *, report: bool = False) -> list[float]:
        """
        :param wanted: Sparsities and seeds.
        :param report: Whether the seeds are those that are reported.
        :return: Returns, NaN where a training diverged.
        :raises ChildProcessError: If a training failed by anything else: that says nothing about its sparsity.
        """
        session = self.session
        study = session.report(create=True) if report else session.study
        assert study is not None
        jobs = []
        for sparsity, index in wanted:
            seed = REPORT_SEED + index if report else session.subject.seed + index
            attributes = {"seed": seed, "asked": sparsity, "configuration": self.configuration(sparsity)}
            jobs.append(Job(f"sparsity-{sparsity:g}-seed-{seed}", attributes))
        title = ("report, " if report else "") + " and ".join(f"{100 * s:g} % sparse" for s in sorted({s for s, _ in wanted}))
        rows = session.work(study, jobs, title) if jobs else []
        found = {row.attributes["job"]: row for row in rows}
        for job in jobs:
            self.rows[("report " if report else "") + job.name] = row = found[job.name]
            if row.state not in ("complete", "diverged"):
                raise ChildProcessError(
                    f"the training of {100 * row.attributes['asked']:g} % sparse with seed {row.attributes['seed']} failed: "
                    f"{row.reason[:500]}; see {session.folder}/worker-*.log. This is no answer about sparsity: mend it, and "
                    "begin again with another --study-name"
                )
        return [found[job.name].mean if found[job.name].state == "complete" else math.nan for job in jobs]

    def of(self, sparsity: float, *, report: bool) -> list[Tried]:
        """
        :param sparsity: As asked.
        :param report: Of which kind of seeds.
        :return: Its trainings.
        """
        return [
            row
            for name, row in self.rows.items()
            if row.attributes["asked"] == sparsity and name.startswith("report ") == report
        ]

    def returns(self, sparsity: float) -> list[float]:
        """
        :param sparsity: As asked.
        :return: Of its reporting trainings, NaN where one diverged.
        """
        return [row.mean for row in self.of(sparsity, report=True)]

    def table(self) -> str:
        """:return: Every training as CSV."""
        return to_csv(
            [
                {
                    "report": name.startswith("report "),
                    "asked": row.attributes["asked"],
                    "seed": row.attributes["seed"],
                    "state": row.state,
                    "return": row.mean,
                    **{measure: row.measures.get(measure, math.nan) for measure in MEASURES},
                    "reason": row.reason,
                }
                for name, row in self.rows.items()
            ]
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
                check_trainable(subject.task, section, Path(folder))
            except ValueError as error:
                raise ValueError(
                    f"{100 * sparsity:g} % sparse, where the search begins, cannot be trained: {error}"
                ) from error


def keep(
    algo: str,
    env: str,
    fraction: float,
    *,
    confidence: float = 0.9,
    trials: int = 40,
    max_seeds: int = 6,
    most: float = MOST,
    method: str | None = None,
    conf_file: str | Path | None = None,
    steps: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    episodes: int = 20,
    seed: int = 0,
    report_seeds: int = 5,
    place: Place | None = None,
    export_best: str | Path | None = None,
) -> Kept:
    """
    Find the sparsest network that keeps a fraction of what the dense one has learnt, see :mod:`sb3_sparse.tuning.keep`. What a
    network has learnt is how far its return is above that of a policy that acts at random: 3 % of that is the same loss
    whether returns are positive or negative, and whatever constant the environment adds to them.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param fraction: To keep, in (0, 1).
    :param confidence: Of each decision of the search, and of the answer as a whole, one-sided, in [0.5, 1).
    :param trials: Trainings of the search at most, the reference's included.
    :param max_seeds: Trainings of one sparsity at most.
    :param most: The largest sparsity to try, in (0, 1).
    :param method: Preset whose sparsity is searched; ``"static"`` if neither it nor ``conf_file`` is given.
    :param conf_file: A YAML file of rl-zoo3's instead.
    :param steps: Environment steps of a training; None: the configuration's.
    :param parameters: Other hyperparameters than the configuration's.
    :param episodes: Of each evaluation.
    :param seed: First seed of the trainings that decide.
    :param report_seeds: Trainings of the answer and the reference afterwards, with other seeds and episodes, at least 2.
    :param place: Folder, storage and processes.
    :param export_best: Folder for the answer as ``<algorithm>.yml``.
    :return: The answer.
    :raises ValueError: For everything that is wrong, before anything is trained; and if the dense reference learns nothing.
    :raises FileNotFoundError: If there is no such ``conf_file``.
    :raises ImportError: If a package that the environment or the storage needs is not installed.
    :raises ChildProcessError: If worker processes end before they do anything, or a training fails and has not diverged.
    """
    require_positive("--keep", fraction, below=1)
    if require_positive("--confidence", confidence, below=1) < 0.5:
        raise ValueError(f"`--confidence` must be in [0.5, 1), got {confidence!r}")
    require_integer("--max-seeds", max_seeds, low=FIRST)
    require_integer("--trials", trials, low=FIRST_DENSE + FIRST)
    require_integer("--report-seeds", report_seeds, low=2)
    require_positive("--most", most, below=1)
    check_reporting(seed, max(max_seeds, FIRST_DENSE), report_seeds)
    # Before any model is made, which may fail by what nobody needs to mend
    section = load_section(algo, env, method=method, conf_file=conf_file, steps=steps, parameters=parameters)
    with_sparsity(section, algo, most)
    subject = make_subject(
        "keep",
        algo,
        env,
        objectives=["return"],
        search=[],
        method=method,
        conf_file=conf_file,
        steps=steps,
        parameters=parameters,
        episodes=episodes,
        seed=seed,
        seeds=1,
        sampler="random",
    )
    _check_range(subject, most)
    if export_best is not None:
        make_folder("--export-best", export_best)
    place = place or Place()
    with Session(subject, place) as session:
        trainer = _Trainer(session)
        bisection = Bisection(
            trainer.run,
            keep=fraction,
            floor=session.random_return(subject.episode_seeds),
            confidence=confidence,
            budget=trials,
            max_seeds=max_seeds,
            most=most,
            batch=place.workers,
        )
        accepted = bisection.search()
        for decision in bisection.decisions:
            _say(_show(decision, decision.verdict))
        floor = session.random_return(range(REPORT_EPISODES, REPORT_EPISODES + episodes))
        limits = {"keep": fraction, "floor": floor, "confidence": confidence}
        confirmations = confirm(partial(trainer.run, report=True), accepted, report_seeds, **limits)
        for decision in confirmations:
            passed = decision.verdict == ACCEPTED
            _say(_show(decision, f"{'' if passed else 'not '}confirmed by the reporting seeds,"))
    answer = confirmations[-1].sparsity if confirmations and confirmations[-1].verdict == ACCEPTED else 0.0
    line = _line(trainer, answer, limits, bisection, confirmations)
    files = [write_text(session.folder / "keep.csv", trainer.table())]
    configuration = trainer.configuration(answer)
    if export_best is not None:
        files.append(export_answer(subject, Path(export_best), session.name, line, configuration))
    return Kept(line, answer, bisection.decisions, confirmations, configuration, files)


def _mean(returns: Sequence[float], n_diverged: int) -> str:
    if not returns:
        return "diverged"
    mean, low, high = mean_interval(returns)
    diverged = f", {n_diverged} diverged" if n_diverged else ""
    return f"{mean:.1f} (95 % interval {low:.1f} to {high:.1f}, {len(returns)} seeds{diverged})"


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
    trainer: _Trainer,
    answer: float,
    limits: Mapping[str, float],
    bisection: Bisection,
    confirmations: Sequence[Decision],
) -> str:
    subject, floor = trainer.session.subject, limits["floor"]
    where = f"{subject.algo} on {subject.env}, {subject.section['n_timesteps']:,} steps"
    dense, mine = trainer.returns(0.0), trainer.returns(answer)
    # As they were tested: what diverged counts as random, but does not make the reference worse
    finite = [value for value in dense if math.isfinite(value)]
    of_dense = f"dense {_mean(finite, len(dense) - len(finite))}, random {floor:.1f}"
    claim = f"keep{'s' if answer else ''} {100 * limits['keep']:g} % at {100 * limits['confidence']:g} % confidence"
    notes = [] if answer else _why_none(bisection, confirmations, limits["keep"], limits["confidence"])
    if bisection.is_cut_short:
        low, high = (f"{100 * sparsity:g}" for sparsity in bisection.bracket)
        notes.append(f"--trials ended the search between {low} and {high} % sparse")
    elif answer == bisection.most:
        notes.append("sparser was not tried")
    rest = "".join(f"; {note}" for note in notes)
    if not answer:
        return f"{where}: no sparsity was shown to {claim} ({of_dense}){rest}"
    rows = [row for row in trainer.of(answer, report=True) if row.state == "complete"]
    costs = {name: median(row.measures[name] for row in rows) for name in MEASURES}
    return (
        f"{where}: {100 * costs['sparsity']:.1f} % sparse {claim}: "
        f"{costs['flops']:,.0f} FLOPs ({costs['dense_flops'] / costs['flops']:.1f}x fewer), "
        f"{costs['bytes']:,.0f} bytes ({costs['dense_bytes'] / costs['bytes']:.1f}x fewer), "
        f"return {_mean(with_floor(mine, floor), sum(map(math.isnan, mine)))}; {of_dense}{rest}"
    )
