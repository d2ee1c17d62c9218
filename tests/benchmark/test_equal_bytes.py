"""Return against bytes from made up runs: numbers by hand, what is refused, and what is drawn."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.benchmark.equal_bytes import draw, points_markdown, points_of, read_published
from sb3_sparse.runs.result import DIVERGED
from sb3_sparse.runs.store import Store
from sb3_sparse.sweeps.claims import rows_of_grids
from sb3_sparse.sweeps.grid import cells_of, read_grid
from tests.runs.subjects import make_result

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GRID = {
    "methods": {"dense": None, "wide": {"method": "static"}, "narrow": {"method": "static", "params": {"gamma": 0.9}}},
    "environments": ["Pendulum-v1"],
    "algorithms": ["sac"],
    "steps": 120,
    "params": {"learning_starts": 60},
    "seeds": 3,
    "episodes": 2,
    "evaluations": 2,
}
PUBLISHED = 'environment,weight_bytes,ratio,what,budget,source\nPendulum-v1,50,0.9,"8 wide","9 steps",them\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    (tmp_path / "published.csv").write_text(PUBLISHED)
    return tmp_path


def put(folder, label, values, **costs):
    store = Store(folder)
    cell = next(one for one in cells_of(read_grid(folder / "grid.yml"), trainable=False) if one.label == label)
    for seed, value in values.items():
        result = make_result(cell.spec(seed), value)
        store.put(replace(result, costs={**result.costs, **costs}))


def points(folder):
    return points_of(rows_of_grids([folder / "grid.yml"], folder, lambda cell: 0.0), "dense")


def test_by_hand(folder):
    put(folder, "dense", {0: 100.0, 1: 200.0}, bytes=1000, sparsity=0.0, bits=32)
    put(folder, "wide", {0: 90.0, 1: 180.0, 2: 999.0}, bytes=80, sparsity=0.9, bits=4)
    put(folder, "narrow", {2: 5.0}, bytes=70, sparsity=0.0, bits=4)
    narrow, wide, dense = points(folder)
    assert (wide["bytes"], wide["bits"], wide["seeds"], dense["ratio"]) == (80, 4, 3, 1.0)
    # Of the seeds that both have; the third of the wide one has no partner
    assert wide["ratio"] == pytest.approx(270 / 300)
    assert math.isnan(narrow["ratio"])
    text = points_markdown([narrow, wide, dense], read_published(folder / "published.csv"))
    assert "| sac, Pendulum-v1 | wide | 80 | 423 | 90.0 % |" in text
    assert "| Pendulum-v1 | 8 wide (them) | 50, weights alone | - | 90 % | - | 9 steps |" in text
    assert "| sac, Pendulum-v1 | narrow | 70 | 5 | - | - |" in text


def test_a_training_that_diverged_counts_as_nothing(folder):
    put(folder, "dense", {0: 100.0, 1: 100.0}, bytes=1000, sparsity=0.0, bits=32)
    put(folder, "wide", {0: 90.0}, bytes=80, sparsity=0.9, bits=4)
    cell = next(one for one in cells_of(read_grid(folder / "grid.yml"), trainable=False) if one.label == "wide")
    Store(folder).put(make_result(cell.spec(1), state=DIVERGED))
    wide = points(folder)[0]
    assert (wide["ratio"], wide["return"], wide["seeds"]) == (pytest.approx(0.45), 45.0, 1)


def test_drawn_with_one_seed_and_others_points(folder):
    pytest.importorskip("matplotlib")
    put(folder, "dense", {0: 100.0}, bytes=1000, sparsity=0.0, bits=32)
    put(folder, "wide", {0: 90.0}, bytes=80, sparsity=0.9, bits=4)
    put(folder, "narrow", {0: 80.0}, bytes=70, sparsity=0.0, bits=4)
    files = draw(points(folder), read_published(folder / "published.csv"), folder / "figure")
    assert [file.name for file in files] == ["figure.png", "figure.svg"]
    text = files[1].read_text()
    for label in (
        "wide and sparse, 4 bits",
        "narrow and dense, 4 bits",
        "full agent, 32 bits",
        "120 steps, 1 seed<",
        "them: weights alone, 9 steps",
        "8 wide",
    ):
        assert label in text
    assert draw([], [], folder / "nothing") == []


def test_the_command(folder, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["equal-bytes", str(folder / "grid.yml"), "--runs", str(folder), "-o", str(folder / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "`--runs`: nothing of" in capsys.readouterr().err
    put(folder, "dense", {0: 100.0}, bytes=1000, sparsity=0.0, bits=32)
    put(folder, "wide", {0: 90.0}, bytes=80, sparsity=0.9, bits=4)
    main([*arguments, "--published", str(folder / "published.csv")])
    assert {file.name for file in (folder / "out").iterdir()} == {
        f"equal_bytes.{kind}" for kind in ("md", "csv", "png", "svg")
    }
    assert "90.0 %" in capsys.readouterr().out
    for more, said in (
        (["--reference", "full"], "`--reference` 'full' is none of the agents of the grids"),
        (["--published", str(folder / "none.csv")], "`--published`: there is no file"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *more])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "environment,bytes\nx,1\n",
            "has the columns environment, bytes; a file of published points has environment, weight_bytes, ratio",
        ),
        (PUBLISHED.replace("50", "many"), "line 2: could not convert"),
        (PUBLISHED.replace("50", "-1"), "line 2: weight_bytes and ratio must be numbers"),
        (PUBLISHED.replace("0.9", "nan"), "line 2: weight_bytes and ratio must be numbers"),
    ],
)
def test_points_that_will_not_do(tmp_path, text, message):
    (tmp_path / "published.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_published(tmp_path / "published.csv")


@pytest.mark.parametrize(
    ("grid", "environments", "all_bits"),
    [("grid", ["HalfCheetah-v4"], [8]), ("grid_normalized", ["HalfCheetah-v4", "Hopper-v4"], [8, 4, 3])],
)
def test_the_grids_of_the_documentation(grid, environments, all_bits, tmp_path):
    pytest.importorskip("mujoco")
    folder = RESULTS / "equal_bytes"
    rows = rows_of_grids([folder / f"{grid}.yml"], tmp_path, lambda cell: 0.0)
    assert list(dict.fromkeys(env for _, env, _ in rows)) == environments
    for env in environments:
        labels = {label for algo, one, label in rows if (algo, one) == ("sac", env)}
        assert labels == {
            "dense",
            *(f"{sparsity} % {bits} bits" for sparsity in (90, 95, 98) for bits in all_bits),
            *(f"{width} wide {bits} bits" for width in (64, 32, 16) for bits in all_bits),
        }
    for (_, _, label), row in rows.items():
        policy_kwargs = row.cell.section["policy_kwargs"]
        normalized = {"norm_obs": True, "norm_reward": False} if grid == "grid_normalized" else None
        assert row.cell.section.get("normalize") == normalized
        assert policy_kwargs["sparsity"] == {"actor": 0.0, "critic": 0.9}
        width = int((re.match(r"(\d+) wide", label) or [0, 256])[1])
        net_arch = policy_kwargs.get("net_arch", {"pi": [256, 256], "qf": [256, 256]})
        assert net_arch == {"pi": [width, width], "qf": [256, 256]}
        quantization = [one for one in row.cell.section.get("callback") or [] if "sb3_sparse.QuantizationAware" in one]
        if label != "dense":
            ((kwargs,),) = (one.values() for one in quantization)
            n_bits = int(re.search(r"(\d) bits", label)[1])
            assert (kwargs["bits"], kwargs["activation_bits"], kwargs["input_bits"]) == (n_bits, 8, 8)
            assert round(kwargs["start"] * 300_000) == 250_000
    assert len(read_published(folder / "published.csv")) == 6
