"""
Break every promise on purpose, and see which test notices. Each mutation changes a line in a copy of the package; the tests
that are named beside it must fail there, and pass in a copy that nobody changed. As a program it writes the table::

    python -m tests.mutations                 # all of them
    python -m tests.mutations --only moments  # whose names hold the text
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    """
    :param name: What is broken.
    :param file: Where, below the package.
    :param before: Text that is there, exactly once.
    :param after: What takes its place.
    :param tests: Arguments for pytest: where it should be noticed.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


INVARIANTS, RIGL, RESUME = (
    "tests/policies/test_invariants.py",
    "tests/callbacks/test_set_rigl.py",
    "tests/checkpoint/test_resume.py",
)
TD3_RUN = (RESUME, "-k", "same_bits and TD3")
MUTATIONS = (
    Mutation(
        "moments of weights that drop out or grow are not reset",
        "nn/sparsifier.py",
        "                restart_moments(optimizer, layer.weight, grown | ~mask)\n",
        "                pass\n",
        (INVARIANTS, "-k", "moments_restart or set_masks_by_hand"),
    ),
    Mutation(
        "moments of grown weights go on from what they were",
        "nn/sparsifier.py",
        "restart_moments(optimizer, layer.weight, grown | ~mask)",
        "restart_moments(optimizer, layer.weight, ~mask)",
        (INVARIANTS, "-k", "moments_restart or set_masks_by_hand"),
    ),
    Mutation(
        "the target keeps weights that drop out online",
        "nn/sparsifier.py",
        "                self._follow(target, layer)\n",
        "                pass\n",
        (INVARIANTS, "-k", "set_masks_by_hand"),
    ),
    Mutation(
        "weights are not projected after the step of an optimizer that mixes them",
        "nn/sparsifier.py",
        "layer.project()  # whatever is there: 0 / 0 is NaN, and NaN times zero",
        "pass",
        (INVARIANTS, "-k", "optimizers or mixes"),
    ),
    Mutation(
        "masks may change the number of weights",
        "nn/sparsifier.py",
        "        self._check_masks(masks, grown_values, replan)\n",
        "",
        (INVARIANTS, "-k", "bad_masks or grown_values"),
    ),
    Mutation(
        "step counters do not count",
        "nn/sparsifier.py",
        'getattr(self, f"n_steps_{optimizer}").add_(1)',
        'getattr(self, f"n_steps_{optimizer}").add_(0)',
        (INVARIANTS, "-k", "step_counters"),
    ),
    Mutation(
        "cadence is off by one",
        "callbacks/clock.py",
        "return step % self.every == 0 if",
        "return step % self.every == 1 if",
        (RIGL, "-k", "cadence"),
    ),
    Mutation(
        "growth is by the gradient with its sign",
        "callbacks/set_rigl.py",
        "return layer.dense_gradient.abs()",
        "return layer.dense_gradient",
        (RIGL, "-k", "grown_positions or own_loss"),
    ),
    Mutation(
        "growth is by another loss: gradients that came later count too",
        "nn/layers.py",
        "layer.dense_gradient = weight.grad.detach().clone()",
        "layer.dense_gradient = weight.grad.detach()",
        (RIGL, "-k", "grown_positions or own_loss"),
    ),
    Mutation(
        "the largest weights are dropped",
        "masks/drop_and_grow.py",
        "return top_mask(sizes, n_active - n_drop)",
        "return top_mask(-sizes, n_active - n_drop)",
        ("tests/masks/test_drop_and_grow.py", "-k", "by_hand"),
    ),
    Mutation(
        "an update grows one weight too few",
        "masks/drop_and_grow.py",
        "pattern.budget_of(mask))",
        "pattern.budget_of(kept))",
        ("tests/masks/test_drop_and_grow.py", "-k", "regrow or conserves"),
    ),
    Mutation(
        "cosine annealing is half a period late",
        "masks/schedules.py",
        "return (1 + math.cos(math.pi * progress)) / 2",
        "return (1 - math.cos(math.pi * progress)) / 2",
        ("tests/masks/test_drop_and_grow.py", "-k", "schedules"),
    ),
    Mutation(
        "gradual pruning is quadratic",
        "masks/schedules.py",
        "(1 - progress) ** 3",
        "(1 - progress) ** 2",
        ("tests/callbacks/test_gradual_pruning.py", "-k", "by_hand"),
    ),
    Mutation(
        "a checkpoint forgets how many rollouts there were",
        "checkpoint/snapshot.py",
        '"n_rollouts": self.n_rollouts,',
        '"n_rollouts": 0,',
        (RESUME, "-k", "logs_counters"),
    ),
    Mutation(
        "a checkpoint forgets the generators",
        "checkpoint/snapshot.py",
        '        restore_generators(decoder.decode(self.tree["generators"]))\n',
        "        pass\n",
        TD3_RUN,
    ),
    Mutation(
        "a checkpoint forgets the environments",
        "checkpoint/snapshot.py",
        "        self._bring_back_environments(recorder)\n",
        "",
        TD3_RUN,
    ),
    Mutation(
        "a checkpoint forgets the callbacks",
        "checkpoint/snapshot.py",
        '        restore_callbacks(recorder.root, self.tree["callbacks"], decoder)\n',
        "",
        TD3_RUN,
    ),
    Mutation(
        "a checkpoint forgets the newest row of the replay buffer",
        "checkpoint/replay.py",
        "        return self._pos, moved\n",
        "        return self._pos, max(moved - 1, 0)\n",
        TD3_RUN,
    ),
    Mutation(
        "a checkpoint forgets what the logger has not written yet",
        "checkpoint/snapshot.py",
        '        restore_logger(model.logger, self.tree["logger"], decoder)\n',
        "",
        TD3_RUN,
    ),
    Mutation(
        "a rollout begins again in its middle",
        "checkpoint/snapshot.py",
        "            buffer.pos = self.n_rows\n",
        "            buffer.pos = 0\n",
        (RESUME, "-k", "middle_of_a_rollout"),
    ),
    Mutation(
        "a rollout past the end is not gone on with",
        "checkpoint/snapshot.py",
        "            model.num_timesteps -= self.n_rows * model.n_envs\n",
        "",
        (RESUME, "-k", "past_the_end"),
    ),
    Mutation(
        "a checkpoint is written where it will be",
        "checkpoint/store.py",
        '        partial = self.folder / f".partial-{target.name}"\n',
        "        partial = target\n",
        ("tests/checkpoint/test_store.py", "-k", "fails_at_any_operation or where_they_should_be"),
    ),
    Mutation(
        "a file is not synchronised before it is referred to",
        "checkpoint/files.py",
        "            os.fsync(stream.fileno())\n",
        "",
        ("tests/checkpoint/test_store.py", "-k", "where_they_should_be"),
    ),
    Mutation(
        "a torn file is read",
        "checkpoint/store.py",
        "        if hashlib.sha256(data).hexdigest() != digest:\n",
        "        if False:\n",
        (RESUME, "-k", "segment_that_is_not or damaged"),
    ),
    Mutation(
        "report unpickles",
        "cli/main.py",
        "load_model(file, arguments.algo) if arguments.allow_pickle else",
        "load_model(file, arguments.algo) if True else",
        ("tests/conversion/test_untrusted.py", "-k", "nothing_hostile"),
    ),
)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[bool, list[str]]:
    """
    :param folder: A copy of package and tests.
    :param tests: Arguments for pytest.
    :return: Whether they pass, and the names of those that do not.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=1800)
    if done.returncode not in (0, 1):
        raise AssertionError(f"pytest {' '.join(tests)} did not run: {done.stdout[-2000:]}{done.stderr[-1000:]}")
    return done.returncode == 0, re.findall(r"^FAILED ([^\s\[]+)", done.stdout, re.MULTILINE)


def copy_of(folder: Path) -> Path:
    """A copy of everything that tests need."""
    for name in ("sb3_sparse", "sb3_sparse_runtime", "tests", "hyperparams"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def mutate(folder: Path, mutation: Mutation) -> None:
    """
    :param folder: A copy of the package.
    :param mutation: What to break in it.
    :raises AssertionError: If the text is not there, or not once.
    """
    file = folder / "sb3_sparse" / mutation.file
    text = file.read_text()
    assert text.count(mutation.before) == 1, f"{mutation.name}: {mutation.file} holds that {text.count(mutation.before)} times"
    file.write_text(text.replace(mutation.before, mutation.after))


def check(mutation: Mutation, folder: Path) -> list[str]:
    """
    :param mutation: What to break.
    :param folder: A copy of the package; it is whole again afterwards.
    :return: Tests that noticed.
    """
    file = folder / "sb3_sparse" / mutation.file
    whole = file.read_text()
    mutate(folder, mutation)
    try:
        return run_tests(folder, mutation.tests)[1]
    finally:
        file.write_text(whole)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 1 if something is not noticed."""
    parser = argparse.ArgumentParser(description="Break every promise on purpose, and see which test notices.")
    parser.add_argument("--only", nargs="+", metavar="TEXT", default=[""])
    parser.add_argument("--output", type=Path, help="a file for the table")
    known = parser.parse_args(arguments)
    rows, n_unnoticed = ["| what is broken | where | noticed by |", "| --- | --- | --- |"], 0
    chosen = [one for one in MUTATIONS if any(part in one.name for part in known.only)]
    with tempfile.TemporaryDirectory() as name:
        folder = copy_of(Path(name))
        for tests in dict.fromkeys(one.tests for one in chosen):
            assert run_tests(folder, tests)[0], f"{tests} fail where nothing is broken"
        for mutation in chosen:
            noticed = check(mutation, folder)
            n_unnoticed += not noticed
            by = f"`{noticed[0].rpartition('/')[2]}`" if noticed else "**nobody**"
            rows.append(f"| {mutation.name} | `{mutation.file}` | {by} |")
            print(rows[-1], flush=True)
            if known.output is not None:
                known.output.write_text("\n".join(rows) + "\n")
    return int(n_unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
