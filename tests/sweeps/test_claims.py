"""Verdicts by hand, tables of unfinished grids, and that the files which are kept of a run are enough."""

import csv
import io
import math
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.store import Store
from sb3_sparse.sweeps.claims import (
    claims_markdown,
    claims_table,
    public_table,
    read_claims,
    rows_of_grids,
    runs_table,
    verdict,
)
from sb3_sparse.sweeps.grid import cells_of, read_grid
from tests.runs.subjects import MadeUp, make_result

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GRID = {
    "methods": {
        "dense": None,
        "static": None,
        "thin": {"method": "static", "params": {"policy_kwargs": {"net_arch": [8, 8]}}},
    },
    "environments": ["Pendulum-v1"],
    "algorithms": ["sac"],
    "steps": 120,
    "params": {"learning_starts": 60},
    "seeds": 6,
    "episodes": 2,
    "evaluations": 2,
}
CLAIM = {
    "claim": "static keeps it",
    "source": "us",
    "algorithm": "sac",
    "environment": "Pendulum-v1",
    "method": "static",
    "reference": "dense",
    "published": "90 %",
    "at_least": 0.9,
}
PUBLIC = {"source": "them", "algorithm": "sac", "environment": "Pendulum-v1", "method": "dense", "published": "5", "steps": 9}


@pytest.mark.parametrize(
    ("n_seeds", "kept", "said"),
    [
        (0, (math.nan, math.nan, math.nan), "pending"),
        (1, (1.5, math.nan, math.nan), "1 seed: none"),
        (4, (1.5, 1.4, 1.6), "4 seeds: none"),
        (5, (1.0, 0.9, 1.1), "confirmed"),
        (5, (1.0, 0.899, 1.1), "not confirmed"),
        (5, (0.85, 0.8, 0.9), "not confirmed"),
        (5, (0.85, 0.8, 0.899), "contradicted"),
        (9, (1.0, math.nan, math.nan), "not confirmed"),
    ],
)
def test_verdicts_by_hand(n_seeds, kept, said):
    assert verdict(n_seeds, kept, 0.9) == said


def store_of(folder, values):
    """Results for seeds of cells, by label: ``{"dense": [1.0, 2.0]}``."""
    store = Store(folder)
    for cell in cells_of(read_grid(folder / "grid.yml"), trainable=False):
        for seed, value in enumerate(values.get(cell.label, [])):
            store.put(make_result(cell.spec(seed), value))
    return store


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"claims": [CLAIM], "public": [PUBLIC]}))
    return tmp_path


def test_tables_by_hand(folder):
    store_of(folder, {"dense": [10.0] * 6, "static": [9.0, 9.5, 9.0, 9.5, 9.0, 9.5]})
    rows = rows_of_grids([folder / "grid.yml", folder / "grid.yml"], folder, lambda cell: 0.0)
    claims, public = read_claims(folder / "claims.yml")
    (judged,) = claims_table(claims, rows)
    # Fieller's limits of 0.925 with a standard error of 0.05 / 2 * sqrt(6 / 5) / sqrt(6): 2.571 of them
    assert judged["kept"] == pytest.approx(0.925)
    assert judged["kept_low"] == pytest.approx(0.925 - 2.571 * 0.025 / 5**0.5, abs=1e-4)
    assert (judged["seeds"], judged["verdict"]) == (6, "not confirmed")
    assert "static keeps it (sac, Pendulum-v1; us)" in claims_markdown([judged])
    (beside,) = public_table(public, rows)
    assert (beside["return"], beside["steps"], beside["published_steps"], beside["seeds"]) == (10.0, 120, 9, 6)
    listed = runs_table(rows)
    assert [(one["method"], one["seed"], one["return"]) for one in listed][:2] == [("dense", 0, 10.0), ("dense", 1, 10.0)]
    assert len(listed) == 12


def test_what_has_not_been_trained_is_pending(folder):
    store_of(folder, {"dense": [10.0]})

    def floor(cell):
        assert cell.env == "Pendulum-v1"
        return 0.0

    rows = rows_of_grids([folder / "grid.yml"], folder, floor)
    (judged,) = claims_table(read_claims(folder / "claims.yml")[0], rows)
    assert (judged["verdict"], judged["seeds"], judged["reference_return"]) == ("pending", 0, 10.0)
    assert math.isnan(judged["kept"])
    assert (
        claims_markdown([judged])
        == f"Pending:\n\n* static keeps it (sac, Pendulum-v1; us); published: {judged['published']}\n"
    )


def test_one_name_for_two_trainings_is_refused(folder):
    (folder / "other.yml").write_text(yaml.safe_dump({**GRID, "steps": 130}))
    with pytest.raises(ValueError, match=r"`grids`: .*other.yml and a grid before it mean different trainings by 'dense'"):
        rows_of_grids([folder / "grid.yml", folder / "other.yml"], folder, lambda cell: 0.0)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"claims": [{**CLAIM, "mehtod": "x"}]}, "number 1 of `claims` must be a map of claim, source,"),
        ({"claims": [{"claim": "x"}]}, "number 1 of `claims` must be a map of"),
        ({"claims": [CLAIM], "public": [CLAIM]}, "number 1 of `public` must be a map of source, algorithm,"),
        ({"claims": [CLAIM], "more": []}, "must be a map of `claims` and `public`"),
        ({"claims": []}, "must be a map of `claims` and `public`"),
        ([1], "must be a map of `claims` and `public`"),
        ({"claims": [{**CLAIM, "at_least": 0}]}, "`at_least of 'static keeps it'` must be a positive number, got 0"),
    ],
)
def test_claims_that_will_not_do(tmp_path, contents, message):
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(contents))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_claims(tmp_path / "claims.yml")


def test_a_claim_about_what_no_grid_trains_is_refused(folder):
    rows = rows_of_grids([folder / "grid.yml"], folder, lambda cell: 0.0)
    (claim,) = read_claims(folder / "claims.yml")[0]
    with pytest.raises(
        ValueError, match="the claims name 'rlx2' of sac on Pendulum-v1; the grids have there: dense, static, thin"
    ):
        claims_table([type(claim)(**{**CLAIM, "method": "rlx2"})], rows)


def test_the_command_writes_everything(folder, capsys):
    store_of(folder, {"dense": [-100.0] * 5, "static": [-120.0] * 5})
    arguments = [str(folder / "grid.yml"), "--claims", str(folder / "claims.yml"), "--runs", str(folder)]
    main(["claims", *arguments, "-o", str(folder / "out")])
    assert "10 runs of 3 cells" in capsys.readouterr().out
    assert {file.name for file in (folder / "out").iterdir()} == {"claims.md", "claims.csv", "public.csv", "runs.csv"}
    (judged,) = csv.DictReader(io.StringIO((folder / "out" / "claims.csv").read_text()))
    # A random policy on Pendulum has about -1200: 20 of some 1100 are lost
    assert 0.97 < float(judged["kept"]) < 0.99
    with pytest.raises(SystemExit):
        main(["claims", *arguments[:-1], str(folder / "nothing"), "-o", str(folder / "out")])
    assert "`--runs`: there is no folder" in capsys.readouterr().err


# --- The files that are kept ---


def test_result_json_alone_makes_a_sweep_skip_a_run(folder):
    store = store_of(folder, {"dense": [1.0], "static": [2.0]})
    kept = Store(folder / "kept")
    cells = cells_of(read_grid(folder / "grid.yml"), trainable=False)
    for cell in cells[:2]:
        (kept.path(cell.spec(0))).mkdir()
        (kept.path(cell.spec(0)) / "result.json").write_text((store.path(cell.spec(0)) / "result.json").read_text())
    engine = MadeUp(lambda spec: make_result(spec, 3.0))
    with Driver(kept, engine) as driver:
        results = driver.run([cell.spec(0) for cell in cells])
    assert [result.mean for result in results] == [1.0, 2.0, 3.0]
    assert [spec.key for spec in engine.submitted] == [cells[2].spec(0).key]


def test_git_keeps_results_and_evaluations_of_runs():
    if not (RESULTS.parents[1] / ".git").exists():
        pytest.skip("not a checkout")

    def ignored(name):
        command = ["git", "check-ignore", "--quiet", "--no-index", str(RESULTS / "runs" / name)]
        return subprocess.run(command, cwd=RESULTS).returncode == 0

    assert not any(ignored(f"some-run/{name}") for name in ("result.json", "evaluations.csv"))
    assert all(ignored(name) for name in ("driver.lock", "some-run/log.txt", "some-run/td3/x/x.zip"))


def test_claims_in_the_documentation_are_about_what_is_trained(tmp_path):
    pytest.importorskip("mujoco")
    for file in RESULTS.glob("*/claims.yml"):
        claims, public = read_claims(file)
        rows = rows_of_grids(sorted(file.parent.glob("grid*.yml")), tmp_path, lambda cell: 0.0)
        assert len(claims_table(claims, rows)) == len(claims)
        assert len(public_table(public, rows)) == len(public)


def test_tables_in_the_documentation_are_those_of_the_results_that_are_kept(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(RESULTS.parents[1])
    folder = RESULTS / "claims"
    grids = [str(file) for file in sorted(folder.glob("grid*.yml"))]
    arguments = ["--claims", str(folder / "claims.yml"), "--runs", str(RESULTS / "runs"), "-o", str(tmp_path)]
    main(["claims", *grids, *arguments])
    for name in ("public.csv", "runs.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name
    # Of a random policy's return another processor has other last digits
    found, kept = (list(csv.DictReader(io.StringIO((one / "claims.csv").read_text()))) for one in (tmp_path, folder))
    for name in ("claim", "method", "reference", "seeds", "return", "verdict"):
        assert [row[name] for row in found] == [row[name] for row in kept], name
    # Of a table's rows the bars, of all other lines the text
    found_lines, kept_lines = ((one / "claims.md").read_text().splitlines() for one in (tmp_path, folder))
    for found_line, kept_line in zip(found_lines, kept_lines, strict=True):
        assert found_line.count("|") == kept_line.count("|")
        assert found_line == kept_line or found_line.startswith("|")


def test_results_in_the_documentation_are_of_its_grids():
    pytest.importorskip("mujoco")
    known = {
        cell.spec(seed).training_key
        for file in RESULTS.glob("*/grid*.yml")
        for grid in [read_grid(file)]
        for cell in cells_of(grid, trainable=False)
        for seed in grid.seed_list
    }
    for result in Store(RESULTS / "runs").results():
        assert result.spec.training_key in known, result.spec.key
        assert result.versions.get("commit"), result.spec.key
