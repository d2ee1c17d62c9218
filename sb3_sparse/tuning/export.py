"""Found configurations as files that plain rl-zoo3 trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sb3_sparse.files import write_text
from sb3_sparse.tuning.results import Point
from sb3_sparse.tuning.study import REPORT_SEED, Subject

#: Of the dense reference's return that the recommended configuration keeps, as in ``--keep``.
_KEEP = 0.97


def recommended(points: Sequence[Point], random: float | None = None) -> Point | None:
    """
    The cheapest point of the front that keeps 97 % of what the dense reference gained over a random policy; if none does,
    the one with the best return.

    :param points: The front, cheapest first, and the dense reference.
    :param random: Return of a random policy; None: 97 % is of the dense return's size.
    :return: A point that is not the dense reference, None if there is none.
    """
    sparse = [point for point in points if point.on_front and not point.row.is_dense]
    dense = [point for point in points if point.row.is_dense]
    if dense and sparse:
        gained = abs(dense[0].mean) if random is None else max(dense[0].mean - random, 0.0)
        for point in sparse:
            if point.mean >= dense[0].mean - (1 - _KEEP) * gained:
                return point
    return max(sparse, key=lambda point: point.mean, default=None)


def _text(subject: Subject, point: Point, study_name: str, command: str) -> str:
    low, high = point.interval()
    measures = point.measures
    seeds = (
        f"{len(point.returns)} reporting seeds, 95 % interval {low:.1f} to {high:.1f}" if len(point.returns) > 1 else "1 seed"
    )
    name = "The dense reference" if point.row.is_dense else f"Trial {point.row.number}"
    lines = [
        f"# {name} of the study {study_name!r} of sb3-sparse tune",
        f"# return {point.mean:.1f} ({seeds}), sparsity {100 * measures['sparsity']:.2f} % of the networks that act,",
        f"# {measures['flops']:,.0f} FLOPs, {measures['bytes']:,.0f} bytes, {measures['parameters']:,.0f} parameters",
        f"# {command}",
    ]
    return "\n".join(lines) + "\n" + point.row.configuration


def export(
    subject: Subject, points: Sequence[Point], folder: Path, study_name: str, random: float | None = None
) -> list[Path]:
    """
    Write the front as rl-zoo3's YAML: ``trial-<number>.yml`` for each of its points, ``dense.yml``, and under the algorithm's
    name (``td3.yml``) the recommended one once more. Files that are there are replaced.

    :param subject: What the study is about.
    :param points: The front and the dense reference.
    :param folder: Where to; made if need be.
    :param study_name: Name of the study, for the comment above the configuration.
    :param random: Return of a random policy, see :func:`recommended`.
    :return: The files, the recommended one first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named: list[tuple[str, Point]] = []
    best = recommended(points, random)
    if best is not None:
        named.append((f"{subject.algo}.yml", best))
    for point in points:
        if point.row.is_dense or point.on_front:
            named.append(("dense.yml" if point.row.is_dense else f"trial-{point.row.number}.yml", point))
    files = []
    for name, point in named:
        command = f"python -m rl_zoo3.train --algo {subject.algo} --env {subject.env} -conf {name} --seed {REPORT_SEED}"
        files.append(write_text(folder / name, _text(subject, point, study_name, command)))
    return files
