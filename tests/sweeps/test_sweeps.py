"""Grids, their tables, and pages that a browser opens; end to end with trainings that are made up and with real ones."""

import csv
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from sb3_sparse.cli.main import main
from sb3_sparse.runs import html
from sb3_sparse.runs.figures import log_ticks, logarithmic_axis
from sb3_sparse.runs.local import LocalEngine
from sb3_sparse.runs.result import Evaluation, RunResult
from sb3_sparse.runs.store import Store
from sb3_sparse.sweeps import live, sweep
from sb3_sparse.sweeps.grid import Cell, Grid, cells_of, read_grid
from sb3_sparse.sweeps.live import Table
from sb3_sparse.sweeps.summary import Row, aggregate_markdown, scores_of, task_markdown, task_table
from tests.runs.subjects import COSTS, MadeUp, make_result

PARAMS = {"learning_starts": 60, "batch_size": 16, "policy_kwargs": {"net_arch": [16, 16]}}
GRID = {
    "methods": ["dense", "static"],
    "environments": {
        "Pendulum-v1": {"algorithms": ["sac"], "steps": 120},
        "CartPole-v1": {"algorithms": ["dqn"], "steps": 300, "params": {"train_freq": 4, "gradient_steps": 2}},
    },
    "sparsities": [0.5, 0.9],
    "seeds": 2,
    "episodes": 2,
    "evaluations": 3,
    "params": PARAMS,
}


def make_grid(**changes):
    return Grid(**{**GRID, **changes})


# --- Grids ---


def test_every_grid_in_the_documentation_can_be_trained():
    pytest.importorskip("mujoco")
    grids = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/grid*.yml"))
    assert len(grids) >= 4
    for grid in map(read_grid, grids):
        n_sparse = (len(grid.methods) - 1) * max(len(grid.sparsities), 1)
        assert len(cells_of(grid)) == (1 + n_sparse) * len(grid.environments)


def test_configurations_lie_beside_the_grid(tmp_path, monkeypatch):
    (tmp_path / "mine.yml").write_text("default: {n_timesteps: 100}")
    (tmp_path / "grid.yml").write_text(
        "methods: {mine: {conf_file: mine.yml}, away: {conf_file: away.yml}}\nenvironments: [A]"
    )
    monkeypatch.chdir("/")
    assert read_grid(tmp_path / "grid.yml").methods == {
        "mine": {"conf_file": str(tmp_path / "mine.yml")},
        "away": {"conf_file": "away.yml"},
    }


def test_a_grid_becomes_cells_the_reference_first():
    cells = cells_of(make_grid())
    assert [(cell.env, cell.label) for cell in cells] == [
        (env, label) for env in ("Pendulum-v1", "CartPole-v1") for label in ("dense", "static 50 %", "static 90 %")
    ]
    dense, half, _ = cells[:3]
    assert dense.section["policy_kwargs"] == {
        "sparsity": 0.0,
        "distribution": "erk",
        "pattern": "unstructured",
        "net_arch": [16, 16],
    }
    assert half.section["policy_kwargs"]["sparsity"] == {"actor": 0.5, "critic": 0.5}
    assert cells[3].section["train_freq"] == 4
    spec = half.spec(7)
    assert (spec.seed, spec.episodes, spec.checkpoints, spec.n_timesteps) == (7, 2, (40, 80), 120)
    # What --keep trains of the same configuration is the same training
    from sb3_sparse.tuning.configuration import with_sparsity
    from tests.tuning.subjects import make_subject

    base = cells_of(make_grid(environments={"Pendulum-v1": {"algorithms": ["sac"], "steps": 120}}, sparsities=[]))[1]
    subject = make_subject(section=base.section)
    kept = subject.run(with_sparsity(base.section, "sac", 0.5), 0)
    assert half.spec(0).includes(kept)


def test_trainings_may_be_accelerated(tmp_path):
    file = tmp_path / "grid.yml"
    environments = "{Pendulum-v1: {algorithms: [td3]}, CartPole-v1: {algorithms: [ppo]}}"
    methods = "{dense: null, static: null, mine: {method: static, accelerate: false}}"
    file.write_text(f"methods: {methods}\nenvironments: {environments}\nsteps: 20000\naccelerate: true\n")
    for cell in cells_of(read_grid(file)):
        expected = cell.algo == "td3" and cell.method != "mine"
        assert ("sb3_sparse.Accelerate" in (cell.section.get("callback") or [])) == expected, cell
    with pytest.raises(ValueError, match="`accelerate` must be true or false, got 'yes'"):
        cells_of(replace(read_grid(file), accelerate="yes"))


def test_methods_may_have_files_and_parameters_of_their_own(tmp_path):
    file = tmp_path / "mine.yml"
    section = {
        "n_timesteps": 100,
        "policy": "sb3_sparse.SparseSACPolicy",
        "learning_starts": 50,
        "policy_kwargs": {"sparsity": 0.3},
    }
    file.write_text(yaml.safe_dump({"Pendulum-v1": section}))
    methods = {"dense": None, "mine": {"conf_file": str(file)}, "wide": {"method": "static", "params": {"gamma": 0.9}}}
    cells = cells_of(Grid(methods=methods, environments=["Pendulum-v1"], algorithms=["sac"], steps=120, params=PARAMS))
    assert [cell.label for cell in cells] == ["dense", "mine", "wide"]
    assert cells[1].section["policy_kwargs"]["sparsity"] == 0.3
    assert cells[2].section["gamma"] == 0.9


def test_everything_that_is_wrong_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {
        **GRID,
        "methods": ["dense", "no_method", "rnm", "also_none"],
        "environments": {
            "Pendulum-v1": {"algorithms": ["sac", "dqn"]},
            "NoEnv-v0": {"algorithms": ["sac"]},
            "CartPole-v1": None,
        },
        "sparsities": [0.5, 1.5],
        "seeds": 0,
        "episodes": 0,
        "sequential": {"group": 1, "other": 2},
        "steps": 120,
    }
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as error:
        main(["sweep", "grid.yml"])
    text = str(error.value)
    for message in (
        "`method`='no_method' is unknown",
        "`method`='also_none' is unknown",
        "`env`='NoEnv-v0' is unknown",
        "`pattern`='2:4' is 50 % sparse, always",
        "cannot train dqn on 'Pendulum-v1'",
        "`algorithms` is missing for 'CartPole-v1'",
        "`sparsities` must be a number in (0, 1), got 1.5",
        "`seeds` must be an integer >= 1, got 0",
        "`episodes` must be an integer >= 1, got 0",
        "`sequential.group` must be an integer >= 2, got 1",
        "`sequential` must be a map of error, group",
    ):
        assert message in text, message
    assert [file.name for file in tmp_path.iterdir()] == ["grid.yml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [dense]\n", "`environments` is missing. A grid has: methods, environments, algorithms"),
        ("methods: [dense]\nenvironments: [a]\nsparsity: 1\n", "`sparsity` is unknown"),
        ("- a\n", "must be a map of methods"),
        ("a: [", "is not YAML"),
        ("methods: 3\nenvironments: [Pendulum-v1]\n", "`methods` must be a list of names, or a map, got 3"),
        (
            "methods: {a: {speed: 1}}\nenvironments: [Pendulum-v1]\n",
            "`methods` 'a' must be a map of accelerate, conf_file, method, params",
        ),
        (
            "methods: [static]\nenvironments: [Pendulum-v1]\nalgorithms: [sac]\nsteps: 200\n",
            "`reference` 'dense' is none of the methods",
        ),
        ("methods: [dense]\nenvironments: [Pendulum-v1]\nalgorithms: [sac]\nseeds: [1, 1]\n", "a list without repetitions"),
    ],
)
def test_bad_grids(text, message, tmp_path):
    (tmp_path / "grid.yml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        cells_of(read_grid(tmp_path / "grid.yml"))
    with pytest.raises(FileNotFoundError, match="there is no grid"):
        read_grid(tmp_path / "nothing.yml")


# --- Sweeps, trainings made up ---


def learning(spec):
    """Sparse networks learn as much less as they are sparser; every seed is a bit different, and the same for all."""
    sparsity = spec.section["policy_kwargs"].get("sparsity", 0.5)
    sparsity = max(sparsity.values()) if isinstance(sparsity, dict) else sparsity
    steps = (*spec.checkpoints, spec.n_timesteps)
    noise = float(np.random.default_rng(spec.seed).normal())
    evaluations = tuple(
        Evaluation(
            step, (100 * (1 - sparsity) * (index + 1) / len(steps) + noise,) * 2, (10, 10), {**COSTS, "sparsity": sparsity}
        )
        for index, step in enumerate(steps)
    )
    costs = {**COSTS, "sparsity": sparsity, "bytes": 1000 * (1 - sparsity), "flops": 500 * (1 - sparsity), "latency": 9.0}
    return RunResult(spec, "complete", evaluations, costs, inputs={"actor": [3, 1, 4]}, seconds=2.0, versions={"torch": "2"})


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """``sb3-sparse`` with an engine that takes no time; random policies have nothing."""
    engines = []

    def start(make=learning):
        def engine(*_):
            engines.append(MadeUp(make))
            return engines[-1]

        monkeypatch.setattr("sb3_sparse.runs.local.LocalEngine", engine)
        return engines

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "random_return", lambda *_: 0.0)
    (tmp_path / "grid.yml").write_text(yaml.safe_dump({**GRID, "seeds": 3}))
    return start


def test_a_sweep_trains_what_is_missing_and_reports(made_up, tmp_path, capsys):
    engines = made_up()
    main(["sweep", "grid.yml", "-o", "out"])
    output = capsys.readouterr()
    assert len(engines[0].submitted) == 18
    # Seed by seed
    assert [spec.seed for spec in engines[0].submitted] == [0] * 6 + [1] * 6 + [2] * 6
    assert "sweep: 18 of 18 done" in output.err
    assert "| sac, Pendulum-v1 | static 90 % |" in output.out
    assert "fewer than five seeds" in output.out
    names = {file.name for file in (tmp_path / "out").rglob("*")}
    assert {"sweep.json", "summary.md", "summary.csv", "report.html", "curves.svg", "evaluations.csv"} <= names
    rows = list(csv.DictReader((tmp_path / "out/summary.csv").open()))
    assert [float(row["kept"] or "nan") for row in rows[1:3]] == pytest.approx([0.5, 0.1], abs=0.02)
    assert float(rows[1]["difference"]) == pytest.approx(-50)
    # Paired: what seeds have in common does not count
    assert (
        float(rows[1]["difference_high"]) - float(rows[1]["difference_low"])
        < 1e-6
        < float(rows[1]["return_high"]) - float(rows[1]["return_low"])
    )
    evaluations = next((tmp_path / "out/runs").glob("*/evaluations.csv"))
    assert [row["step"] for row in csv.DictReader(evaluations.open())] == ["40", "80", "120"] or "CartPole" in str(evaluations)
    main(["sweep", "grid.yml", "-o", "out"])
    assert engines[1].submitted == []
    # More seeds train those alone
    (tmp_path / "grid.yml").write_text(yaml.safe_dump({**GRID, "seeds": 4}))
    main(["sweep", "grid.yml", "-o", "out"])
    assert [spec.seed for spec in engines[2].submitted] == [3] * 6
    capsys.readouterr()
    main(["sweep", "grid.yml", "-o", "dry", "--dry-run"])
    assert "sac on Pendulum-v1: static 90 %, 120 steps, 4 seeds" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_failures_keep_their_traceback_and_are_retried_on_request(made_up, tmp_path, capsys):
    def make(spec):
        return make_result(spec, state="failed") if spec.seed == 1 and spec.env == "Pendulum-v1" else learning(spec)

    engines = made_up(make)
    main(["sweep", "grid.yml", "-o", "out"])
    assert "3 not completed: tracebacks in" in capsys.readouterr().err
    files = sorted((tmp_path / "out/runs").glob("*/error.txt"))
    assert len(files) == 3
    assert "Traceback: made up" in files[0].read_text()
    assert "Traceback: made up" in (tmp_path / "out/report.html").read_text()
    assert "| 2 (few, 1 of 3 failed) |" in (tmp_path / "out/summary.md").read_text()
    main(["sweep", "grid.yml", "-o", "out"])
    assert engines[1].submitted == []
    made_up()
    main(["sweep", "grid.yml", "-o", "out", "--retry"])
    assert [spec.seed for spec in engines[2].submitted] == [1, 1, 1]
    assert not list((tmp_path / "out/runs").glob("*/error.txt"))


def test_seeds_are_spent_where_they_decide(made_up, tmp_path, capsys):
    def make(spec):
        if 0.5 in values(spec):
            return make_result(spec, 100 + float(np.random.default_rng(100 + spec.seed).normal()))
        return learning(spec)

    def values(spec):
        sparsity = spec.section["policy_kwargs"]["sparsity"]
        return list(sparsity.values()) if isinstance(sparsity, dict) else [sparsity]

    environments = {"Pendulum-v1": {"algorithms": ["sac"], "steps": 120}}
    grid = {**GRID, "environments": environments, "seeds": 15, "sequential": {"group": 5, "error": 0.1}}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(grid))
    engines = made_up(make)
    main(["sweep", "grid.yml", "-o", "out"])
    per_sparsity = {}
    for spec in engines[0].submitted:
        per_sparsity.setdefault(values(spec)[0], []).append(spec.seed)
    # 90 % is far worse, and known to be so at once; 50 % is not told apart
    assert {sparsity: len(seeds) for sparsity, seeds in per_sparsity.items()} == {0.0: 15, 0.5: 15, 0.9: 5}
    assert "static 90 % is worse than dense after 5 seeds: no more of it" in capsys.readouterr().err
    # Continued it decides the same
    main(["sweep", "grid.yml", "-o", "out"])
    assert engines[1].submitted == []


def test_compare_is_a_sweep_in_one_line(made_up, tmp_path, capsys):
    engines = made_up()
    params = ["learning_starts:60", "batch_size:16"]
    main(["compare", "static", "ds", "--env", "Pendulum-v1", "CartPole-v1", "--seeds", "2", "-n", "300", "--params", *params])
    assert {(spec.algo, spec.env) for spec in engines[0].submitted} == {("sac", "Pendulum-v1"), ("dqn", "CartPole-v1")}
    assert len(engines[0].submitted) == 2 * 3 * 2
    assert (tmp_path / "sweeps/dense-static-ds-Pendulum-v1-CartPole-v1/report.html").is_file()
    output = capsys.readouterr().out
    assert "| sac, Pendulum-v1 | dense |" in output
    assert "better than dense" in output
    with pytest.raises(SystemExit, match="`--env` 'NoEnv-v0' cannot be made"):
        main(["compare", "static", "--env", "NoEnv-v0"])


def test_without_ray_or_scipy_it_is_said(made_up, monkeypatch):
    made_up()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"`--ray` needs Ray .*pip install 'sb3-sparse\[ray\]'"):
        main(["sweep", "grid.yml", "-o", "out", "--ray", "auto"])
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(SystemExit, match=r"sweep needs rl-zoo3 and SciPy .*pip install 'sb3-sparse\[tuning\]'"):
        main(["sweep", "grid.yml"])


def test_live_table(made_up, tmp_path, monkeypatch):
    from rich.console import Console

    from sb3_sparse.runs.driver import Driver

    cell = Cell("static", "sac", "Pendulum-v1", None, {"n_timesteps": 100})
    specs, store = [cell.spec(seed) for seed in range(20)], Store(tmp_path / "runs")
    store.put(make_result(specs[0]))
    engine = MadeUp(make_result)
    engine.submit = lambda spec, folder: __import__("concurrent.futures").futures.Future()
    with Driver(store, engine) as driver:
        table = Table(specs, store)
        for spec in specs[1:3]:
            driver._begin(spec)
        (store.path(specs[1])).mkdir()
        (store.path(specs[1]) / "progress.json").write_text('{"step": 50, "of": 100}')
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(table.render(driver))
        text = console.export_text()
    assert "1 of 20 done" in text
    assert re.search(r"seed 1 \S+ +. running +. 50 % +. [\d,]+ steps/s", text)
    assert re.search(r"seed 2 \S+ +. running +. begins", text)
    assert re.search(r"seed 0 \S+ +. complete", text)
    assert "and 6 more" in text
    # On a terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Driver(store, MadeUp(make_result)) as driver, live.watched(driver, specs[:4]):
        driver.run(specs[:4])
    assert len(store.results()) == 4


# --- A real one ---


def test_a_real_sweep_and_the_page_of_a_training(tmp_path):
    """Interrupted and continued: what was finished is as it was."""
    grid = {**GRID, "environments": {"Pendulum-v1": {"algorithms": ["sac"], "steps": 120}}, "sparsities": [0.9], "seeds": 1}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(grid))
    command = [sys.executable, "-m", "sb3_sparse.cli", "sweep", "grid.yml", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sweep: 2 of 2 done, 0 running" in done.stderr
    results = Store(tmp_path / "out/runs").results()
    assert sorted(result.costs["sparsity"] for result in results) == [0.0, pytest.approx(0.9, abs=0.01)]
    folder = tmp_path / "out/runs" / results[0].spec.key
    assert {"sac.yml", "evaluations.csv", "report.md", "result.json", "log.txt"} <= {file.name for file in folder.iterdir()}
    main(["report", "--html", str(folder)])
    page = (folder / "report.html").read_text()
    for text in ("Learning curves", "Which inputs the first layer looks at", "n_timesteps: 120", "papers_ratio"):
        assert text in page
    main(["report", "--html", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is neither the folder of a sweep"):
        main(["report", "--html", str(tmp_path)])
    (tmp_path / "out/sweep.json").write_text("{")
    with pytest.raises(SystemExit, match="is no sweep"):
        main(["report", "--html", str(tmp_path / "out")])


# --- Tables ---


def row(method, values, *, floor=0.0, env="Pendulum-v1", sparsity=None, states=None):
    cell = Cell(method, "sac", env, sparsity, {"n_timesteps": 100}, 1, 2)
    states = states or ["complete"] * len(values)
    return Row(
        cell,
        [make_result(cell.spec(seed), value, state) for seed, (value, state) in enumerate(zip(values, states, strict=True))],
        floor,
    )


def test_rows_by_hand():
    dense, sparse = row("dense", [190.0, 200.0, 210.0]), row("static", [105.0, 110.0, 115.0])
    kept, difference = sparse.against(dense)
    assert kept[0] == pytest.approx(0.55)
    assert kept[2] - kept[1] < 0.3
    assert difference[0] == -90
    # Other seeds do not pair, and fewer pair as far as they go
    fewer = row("static", [105.0, 110.0])
    assert fewer.against(dense)[1][0] == -87.5
    assert math.isnan(row("static", [60.0]).against(dense)[0][1])
    diverged = row("static", [60.0, 0.0, 0.0], states=["complete", "diverged", "failed"], floor=5.0)
    assert diverged.returns == {0: 60.0, 1: 5.0}
    assert diverged.n_bad == 2
    empty = row("static", [0.0], states=["failed"])
    assert all(map(math.isnan, [*empty.final(), *empty.last(), *empty.area(), *empty.against(dense)[0]]))
    table = task_table([dense, diverged, empty], "dense")
    assert [entry["failed"] for entry in table] == [0, 2, 1]
    assert "| 3 (few) |" in task_markdown([dense], "dense")
    assert "(few" not in task_markdown([row("dense", [1.0, 2.0, 3.0, 4.0, 5.0])], "dense")


def test_methods_over_all_tasks():
    rows = [
        row("dense", [10.0, 20.0], floor=5.0),
        row("static", [10.0, 10.0], floor=5.0),
        row("dense", [1.0, 1.0], env="CartPole-v1"),
        row("static", [1.0, 3.0], env="CartPole-v1"),
        # A task in which the reference has learnt nothing compares nothing
        row("dense", [1.0, 1.0], env="Acrobot-v1", floor=2.0),
        row("half", [1.0, 1.0], env="CartPole-v1"),
    ]
    assert scores_of(rows, "dense") == {"dense": [[0.5, 1.5], [1.0, 1.0]], "static": [[0.5, 0.5], [1.0, 3.0]]}
    lines = aggregate_markdown(rows, "dense").splitlines()
    assert lines[3].startswith("| static | 0.750 | ")
    # (0.25 + 0.75) / 2: ties count half
    assert "| 50 % |" in lines[3]
    assert aggregate_markdown(rows[:1], "dense") == ""


# --- Figures and pages ---


@pytest.mark.parametrize(
    ("low", "high"), [(1, 2), (900, 1100), (1300, 7000), (5e3, 3e5), (1, 1e9), (0.01, 0.012), (242, 133_000), (30_000, 31_000)]
)
def test_ticks_of_logarithmic_axes_have_room(low, high):
    """Numbers ran into each other in front.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)
    figure = Figure(figsize=(5.2, 4.3))
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1)
    axes.scatter([low, high], [0, 1])
    logarithmic_axis(axes)
    canvas.draw()
    boxes = sorted((label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()), key=lambda box: box.x0)
    assert len(boxes) == len(axes.get_xticks()) >= 1
    assert all(first.x1 < second.x0 for first, second in itertools.pairwise(boxes))
    assert not axes.get_xticks(minor=True).size


def test_pages_are_safe_and_self_contained(made_up, tmp_path):
    made_up()
    main(["sweep", "grid.yml", "-o", "out"])
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)|<script|@import|url\((?!#)""", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    # Each figure's names are its own
    assert {name.split("-")[0] for name in ids} == {"curves", "efficiency", "profiles", "costs", "sparsity", "inputs"}
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert page.count("<svg") == 6
    assert "&lt;b&gt;" in html.table("| a | b |\n| --- | --- |\n| <b> | 1 |")
    assert "<b>" not in html.paragraph("<b>")


CHECK = """<!DOCTYPE html><html><body><iframe id="f" width="{width}" height="900" src="report.html"></iframe><script>
document.getElementById("f").onload = function () {{
  const d = this.contentDocument, wide = d.documentElement;
  const out = {{ wider: wide.scrollWidth - wide.clientWidth, figures: d.querySelectorAll("svg").length,
    drawn: [...d.querySelectorAll("svg")].every(s => s.getBoundingClientRect().height > 100),
    tables: d.querySelectorAll("table").length, title: d.title }};
  document.body.setAttribute("data-found", JSON.stringify(out));
}};
</script></body></html>"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_opens_the_page_at_both_widths(width, made_up, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    made_up()
    main(["sweep", "grid.yml", "-o", "out"])
    (tmp_path / "out/check.html").write_text(CHECK.format(width=width))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", f"--window-size={width + 40},1000"]
    url = Path(tmp_path / "out/check.html").as_uri()
    done = subprocess.run([*command, *options, url], capture_output=True, text=True, timeout=120)
    found = json.loads(__import__("html").unescape(re.search(r'data-found="([^"]+)"', done.stdout)[1]))
    assert found == {"wider": 0, "figures": 6, "drawn": True, "tables": 3, "title": "Sweep out"}


def test_engines_are_what_a_driver_asks_for():
    assert LocalEngine(3, Path("log")).size == 3
