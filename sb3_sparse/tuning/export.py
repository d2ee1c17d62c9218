"""Found configurations as files that plain rl-zoo3 trains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sb3_sparse.runs.statistics import margin
from sb3_sparse.tuning.results import Row
from sb3_sparse.tuning.study import REPORT_SEED, Subject
from sb3_sparse.utils.files import write_text

#: Of the dense reference's return that the recommended configuration keeps, as in ``--keep``.
_KEEP = 0.97
#: That none is said to keep it which does not.
_CONFIDENCE = 0.9


def recommended(points: Sequence[Row], random: float | None = None) -> tuple[Row, str] | None:
    """
    The cheapest point of the front that is shown to keep 97 % of what the dense reference gained over a random policy: by the
    lower limit of its margin over the reporting seeds, at 90 % confidence for all together that were trained again without a
    failure (Bonferroni). If none is, the cheapest whose mean return keeps 97 %, which is an estimate from the returns that it
    was chosen by; if none does, the one with the best return. One with failed trainings only if there is no other.

    :param points: The front, cheapest first, the dense reference, and what fell off the front.
    :param random: Return of a random policy; None: 97 % is of the dense return's size.
    :return: A point that is not the dense reference, and by what it was chosen, for a comment; None if there is no point.
    """
    standing = [point for point in points if point.on_front and not point.is_dense]
    sparse = [point for point in standing if not point.n_failed] or standing
    if not sparse:
        return None
    for dense in (point for point in points if point.is_dense):
        gained = abs(dense.mean) if random is None else max(dense.mean - random, 0.0)
        n_tested = sum(len(point.returns) > 1 and not point.n_failed for point in points if not point.is_dense)
        for point in sparse:
            if gained and not point.n_failed and min(len(point.returns), len(dense.returns)) > 1:
                confidence = 1 - (1 - _CONFIDENCE) / n_tested
                limits = {"keep": _KEEP, "floor": dense.mean - gained, "confidence": confidence}
                if margin(point.returns, dense.returns, **limits)[1] >= 0:
                    return point, (
                        f"the cheapest that was shown to keep {100 * _KEEP:g} % of what dense has learnt, "
                        f"at {100 * _CONFIDENCE:g} % confidence for all {n_tested} that were tested"
                    )
        for point in sparse:
            if point.mean >= dense.mean - (1 - _KEEP) * gained:
                return point, (
                    f"the cheapest whose mean return keeps {100 * _KEEP:g} % of what dense has learnt: an estimate from the "
                    "returns it was chosen by, not shown"
                )
    return max(sparse, key=lambda point: point.mean), f"the best return; none keeps {100 * _KEEP:g} % of what dense has learnt"


def _seeds(point: Row) -> str:
    """How many trainings the return of a point comes from."""
    n = len(point.returns)
    if not n + point.n_failed:
        return "of the trainings that chose it, not reported yet"
    text = f"{n} reporting seed{'' if n == 1 else 's'}"
    if point.n_failed:
        text += f", {point.n_failed} of {n + point.n_failed} failed"
    if n > 1:
        low, high = point.interval()
        text += f", 95 % interval {low:.1f} to {high:.1f}"
    return text


def _lines(point: Row) -> list[str]:
    measures = point.measures
    return [
        f"return {point.mean:.1f} ({_seeds(point)}), sparsity {100 * measures['sparsity']:.2f} % of the networks that act,",
        f"{measures['flops']:,.0f} FLOPs, {measures['bytes']:,.0f} bytes, {measures['parameters']:,.0f} parameters",
    ]


def write_configurations(
    subject: Subject, folder: Path, study_name: str, files: Mapping[str, tuple[str, Sequence[str], str]]
) -> list[Path]:
    """
    Write configurations as rl-zoo3's YAML. What the same study wrote there earlier is removed: files of such names that begin
    as its own do.

    :param subject: What the study is about.
    :param folder: Where to; made if need be.
    :param study_name: Name of the study, for the first line.
    :param files: By name: what it is, further lines of comment, and the YAML.
    :return: The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ending = f" of the study {study_name!r} of sb3-sparse tune"
    for file in folder.glob("*.yml"):
        if re.fullmatch(rf"trial-\d+|dense|{re.escape(subject.algo)}", file.stem) and file.is_file():
            with file.open(encoding="utf-8", errors="replace") as stream:
                first = stream.readline()
            if first.startswith("# ") and first.rstrip("\n").endswith(ending):
                file.unlink()
    return [
        write_text(folder / name, "".join(f"# {line}\n" for line in (title + ending, *lines)) + configuration)
        for name, (title, lines, configuration) in files.items()
    ]


def export(subject: Subject, points: Sequence[Row], folder: Path, study_name: str, random: float | None = None) -> list[Path]:
    """
    Write the front as rl-zoo3's YAML: ``trial-<number>.yml`` for each of its points, ``dense.yml``, and under the algorithm's
    name (``td3.yml``) the recommended one once more. What the same study wrote there earlier is removed, and files of these
    names are replaced.

    :param subject: What the study is about.
    :param points: The front and the dense reference.
    :param folder: Where to; made if need be.
    :param study_name: Name of the study, for the comment above the configuration.
    :param random: Return of a random policy, see :func:`recommended`.
    :return: The files, the recommended one first.
    """
    best = recommended(points, random)
    named = {} if best is None else {f"{subject.algo}.yml": (best[0], [f"recommended: {best[1]}"])}
    for point in points:
        if point.is_dense or point.on_front:
            named["dense.yml" if point.is_dense else f"trial-{point.number}.yml"] = (point, [])
    files = {}
    for name, (point, notes) in named.items():
        command = f"python -m rl_zoo3.train --algo {subject.algo} --env {subject.env} -conf {name} --seed {REPORT_SEED}"
        title = "The dense reference" if point.is_dense else f"Trial {point.number}"
        files[name] = (title, [*_lines(point), *notes, command], point.configuration)
    return write_configurations(subject, folder, study_name, files)
