"""``sb3-sparse tune --keep 0.97``: how sparse can it be? Answered in one line."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sb3_sparse.checks import require_integer, require_positive
from sb3_sparse.files import write_text
from sb3_sparse.tuning.configuration import dense, with_sparsity
from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.intervals import margin, mean_interval
from sb3_sparse.tuning.keep import FIRST, FIRST_DENSE, Bisection, Decision
from sb3_sparse.tuning.queue import Job
from sb3_sparse.tuning.results import MEASURES, Tried
from sb3_sparse.tuning.session import Place, Session, make_subject
from sb3_sparse.tuning.study import REPORT_EPISODES, REPORT_SEED
from sb3_sparse.tuning.tables import to_csv
from sb3_sparse.tuning.tune import check_reporting


@dataclass(frozen=True)
class Kept:
    """
    The answer.

    :param line: In one line.
    :param sparsity: What was asked of the networks, 0 if no sparsity passed.
    :param decisions: Every test of the search, in order.
    :param configuration: YAML of the answer, for rl-zoo3.
    :param files: What was written.
    """

    line: str
    sparsity: float
    decisions: list[Decision]
    configuration: str
    files: list[Path]


class _Trainer:
    """Trains sparsities with seeds in a session's study, and with the reporting seeds in its report."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.rows: dict[str, Tried] = {}
        self._jobs: dict[str, Job] = {}

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
        :return: Returns, NaN where a training failed.
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
            self.rows[("report " if report else "") + job.name] = found[job.name]
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


def keep(
    algo: str,
    env: str,
    fraction: float,
    *,
    confidence: float = 0.9,
    trials: int = 40,
    max_seeds: int = 6,
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
    :param confidence: Of each decision and of the answer, one-sided, in [0.5, 1).
    :param trials: Trainings of the search at most, the reference's included.
    :param max_seeds: Trainings of one sparsity at most.
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
    """
    require_positive("--keep", fraction, below=1)
    if require_positive("--confidence", confidence, below=1) < 0.5:
        raise ValueError(f"`--confidence` must be in [0.5, 1), got {confidence!r}")
    require_integer("--max-seeds", max_seeds, low=FIRST)
    require_integer("--trials", trials, low=FIRST_DENSE + FIRST)
    require_integer("--report-seeds", report_seeds, low=2)
    check_reporting(seed, max(max_seeds, FIRST_DENSE), report_seeds)
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
            batch=place.workers,
        )
        accepted = bisection.search()
        for decision in bisection.decisions:
            limits = "its trainings fail" if math.isnan(decision.low) else f"{decision.low:.1f} to {decision.high:.1f}"
            _say(f"{100 * decision.sparsity:g} % sparse: {decision.verdict} with {decision.seeds} seeds, margin {limits}")
        floor = session.random_return(range(REPORT_EPISODES, REPORT_EPISODES + episodes))
        answer = _confirmed(trainer, accepted, report_seeds, keep=fraction, floor=floor, confidence=confidence)
    files = [write_text(session.folder / "keep.csv", trainer.table())]
    configuration = trainer.configuration(answer)
    if export_best is not None:
        folder = Path(export_best)
        folder.mkdir(parents=True, exist_ok=True)
        files.append(write_text(folder / f"{algo}.yml", configuration))
    line = _line(trainer, answer, fraction, confidence, floor, bisection)
    return Kept(line, answer, bisection.decisions, configuration, files)


def _confirmed(trainer: _Trainer, accepted: Sequence[float], n_seeds: int, **limits: float) -> float:
    """The sparsest of those that were accepted which passes with the reporting seeds too, 0 if none does."""
    for sparsity in [*accepted, 0.0]:
        trainer.run([(s, index) for index in range(n_seeds) for s in sorted({0.0, sparsity})], report=True)
        if not sparsity:
            break
        good, dense = ([row.mean for row in trainer.of(s, report=True) if row.state == "complete"] for s in (sparsity, 0.0))
        # One failed training is bad luck, two are a habit
        if min(len(good), len(dense)) >= 2 and len(good) >= n_seeds - 1 and margin(good, dense, **limits)[1] >= 0:
            return sparsity
        _say(f"{100 * sparsity:g} % sparse: not confirmed by the reporting seeds")
    return 0.0


def _line(trainer: _Trainer, answer: float, fraction: float, confidence: float, floor: float, bisection: Bisection) -> str:
    subject = trainer.session.subject
    where = f"{subject.algo} on {subject.env}, {subject.section['n_timesteps']:,} steps"
    rows, reference = ([row for row in trainer.of(s, report=True) if row.state == "complete"] for s in (answer, 0.0))
    dense_mean, dense_low, dense_high = mean_interval([row.mean for row in reference])
    of_dense = f"dense {dense_mean:.1f} ({dense_low:.1f} to {dense_high:.1f}), random {floor:.1f}"
    if not answer:
        undecided = sum(decision.verdict == "undecided" for decision in bisection.decisions)
        why = (
            f"; {undecided} of {len(bisection.decisions)} sparsities undecided, more --max-seeds decide more"
            if undecided
            else ""
        )
        return f"{where}: no sparsity was shown to keep {fraction:.0%} at {confidence:.0%} confidence ({of_dense}){why}"
    mean, low, high = mean_interval([row.mean for row in rows])
    costs = {name: median(row.measures[name] for row in rows) for name in MEASURES}
    return (
        f"{where}: {100 * costs['sparsity']:.1f} % sparse keeps {fraction:.0%} at {confidence:.0%} confidence: "
        f"{costs['flops']:,.0f} FLOPs ({costs['dense_flops'] / costs['flops']:.1f}x fewer), "
        f"{costs['bytes']:,.0f} bytes ({costs['dense_bytes'] / costs['bytes']:.1f}x fewer), "
        f"return {mean:.1f} (95 % interval {low:.1f} to {high:.1f}, {len(rows)} seeds; {of_dense})"
    )
