"""The scripts in docs/examples run, with fewer steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
#: By name: arguments, what the last lines say, and whether it takes minutes.
RUNS = {
    "sparse_td3_on_hopper": (["400"], "broken promises: []", False),
    "dense_zip_to_c": (["300"], "largest difference of 1,000 actions: ", False),
    "own_environment": (["600"], "one gradient step", False),
    "stop_and_go_on": (["400"], "every weight is the same", False),
    "pareto_study": (["300", "2"], "on front", True),
}


def test_every_example_is_run():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.expensive] if long else []) for name, (*_, long) in RUNS.items()]
)
def test_an_example_runs(name, tmp_path):
    arguments, said, _ = RUNS[name]
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert said in "".join(done.stdout.splitlines(keepends=True)[-8:])
