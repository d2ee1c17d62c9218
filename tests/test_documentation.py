"""What runs the pages of the documentation is right."""

import csv
import re
from statistics import fmean

import pytest

from sb3_sparse.benchmark.equal_seconds import agent, read_points
from sb3_sparse.sweeps.grid import cells_of, read_grid
from tests.documentation import ROOT, Block, blocks_of, run_page

PAGE = """
# Title

Some `code` in a line.

```python
x = 10_000
open("made.txt", "w").write(str(x))
```

% test: skip, it needs a board
```bash
exit 3
```

* In a list:

  % test: 10_000 -> 5
  % test: made -> seen
  ```python
  y = x + 10_000
  open("made.txt", "a").write(f" {y}")
  ```

% test: expensive
```bash
echo -n more >> made.txt
```

```bash
cat made.txt > copy.txt
```

```yaml
a: 1
```
"""


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(PAGE)
    return file


def test_blocks_by_hand(page):
    found = blocks_of(page)
    assert [block.language for block in found] == ["python", "bash", "python", "bash", "bash", "yaml"]
    assert [block.line for block in found] == [7, 13, 21, 27, 31, 35]
    assert found[1].skipped == "it needs a board"
    assert found[2].code == 'y = x + 10_000\nopen("made.txt", "a").write(f" {y}")\n'
    assert found[2].shortened().code == 'y = x + 5\nopen("seen.txt", "a").write(f" {y}")\n'
    assert [block.expensive for block in found] == [False, False, False, True, False, False]


def test_a_page_is_run_from_top_to_bottom_shortened_or_in_full(page, tmp_path, monkeypatch):
    for full, made, seen in ((False, "10000", " 10005"), (True, "10000 20000more", None)):
        folder = tmp_path / str(full)
        folder.mkdir()
        ran = run_page(page, folder, monkeypatch, full=full)
        assert len(ran) == (4 if full else 3)
        assert (folder / "copy.txt").read_text() == made
        assert full != (folder / "seen.txt").exists()
        assert seen is None or (folder / "seen.txt").read_text() == seen


def test_what_fails_is_named_with_its_place(page, tmp_path, monkeypatch):
    page.write_text("\n```bash\necho before\nfalse | true\necho after\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:3: bash ended with 1:\n(?s:.*)before"):
        run_page(page, tmp_path, monkeypatch)
    page.write_text("\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page, tmp_path, monkeypatch)
    assert caught.traceback[-1].lineno + 1 == 4
    page.write_text("```bash\nsb3-sparse report nothing.zip\n```\n")
    with pytest.raises(SystemExit, match=r"there is no model at nothing.zip"):
        run_page(page, tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match=r"there is no model at nothing.zip"):
        run_page(page, tmp_path, monkeypatch, full=True)


def test_marks_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"x.md:3: the mark 'slow' is unknown"):
        blocks_of("x.md", "% test: slow\n```bash\nls\n```\n")
    with pytest.raises(ValueError, match=r"x.md:3: 'a' is to be replaced, and is not there"):
        Block("x.md", 3, "bash", "ls", ("a -> b",)).shortened()


def test_every_mark_of_every_page_is_right():
    pages = sorted(ROOT.glob("docs/**/*.md"))
    assert pages
    for page in pages:
        for block in blocks_of(page):
            block.shortened()


def test_the_front_pages_say_what_was_measured():
    """Of a `learn()` at 95 %: the last factor of a row is accelerated, the fourth is not."""
    measured = {}
    for line in (ROOT / "docs/guide/performance.md").read_text().splitlines():
        factors = re.findall(r"\(([\d.]+)x\)", line)
        if factors:
            measured[line.split("|")[1].strip()] = (f"{float(factors[-1]):.1f}", f"{float(factors[3]):.1f}")
    (td3, td3_plain), (sac, sac_plain) = measured["TD3"], measured["SAC"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"makes {td3} (TD3) and {sac} (SAC) times stock's steps per second with `accelerate`, {td3_plain} and {sac_plain}"
        in readme
    )
    landing = " ".join((ROOT / "docs/index.md").read_text().split())
    assert f"TD3 on Hopper-v4 makes {td3} times stock's steps per second, and SAC {sac} times" in landing


def test_parts_of_rlx2_are_those_that_are_kept():
    with (ROOT / "docs/results/claims/runs.csv").open(newline="") as file:
        returns = {
            row["method"]: float(row["return"])
            for row in csv.DictReader(file)
            if (row["algorithm"], row["environment"], row["seed"]) == ("td3", "HalfCheetah-v4", "1")
        }
    page = (ROOT / "docs/guide/evidence.md").read_text()
    rows = {
        "dense": "dense",
        "static": "static masks",
        "tiny": "dense with as many weights (`tiny`)",
        "RigL": "RigL alone",
        "RigL, delayed targets": "RigL, delayed 3-step targets",
        "RigL, capacity": "RigL, dynamic replay capacity, down to 10,000",
        "rlx2": "all of RLx2, replay capacity down to 100,000 (`rlx2`)",
        "rlx2, 10,000 kept": "all of RLx2, replay capacity down to 10,000",
    }
    for method, text in rows.items():
        assert f"| {text} | {returns[method]:,.0f} |" in page, method
    methods = ("RigL", "rlx2", "rlx2, 10,000 kept")
    alone, all_of_it, scaled = (round(100 * returns[method] / returns["dense"]) for method in methods)
    method_page = " ".join((ROOT / "docs/methods/rlx2.md").read_text().split())
    assert f"RigL alone returns {alone} % of what dense returns, all of RLx2 {all_of_it} %" in method_page
    assert f"scaled down to 10,000, it returned {scaled} %" in method_page


def test_equal_seconds_are_those_that_are_kept():
    last = {point.key: point for point in read_points(ROOT / "docs/results/equal_seconds/HalfCheetah-v4.csv")}.values()
    means = {}
    page = (ROOT / "docs/guide/evidence.md").read_text()
    for name in dict.fromkeys(point.agent for point in last):
        mine = [point for point in last if point.agent == name]
        mean, steps = (fmean(getattr(point, what) for point in mine) for what in ("mean_return", "steps"))
        means[name], speed = f"{mean:,.0f}", fmean(point.steps / point.seconds for point in mine)
        single = ", ".join(f"{point.mean_return:,.0f}" for point in mine)
        assert f"| {agent(name).title} | {mean:,.0f} ({single}) | {steps:,.0f} | {speed:.0f} |" in page, name
    landing = " ".join((ROOT / "docs/index.md").read_text().split())
    assert (
        f"TD3 on HalfCheetah-v4 with 90 % zeros returns {means['accelerated:256:0.9']}; Stable-Baselines3 in JAX returns "
        f"{means['sbx:256']}, and stock {means['dense:256']}"
    ) in landing


def test_agents_of_equal_bytes_are_those_that_are_kept():
    page = " ".join((ROOT / "docs/guide/evidence.md").read_text().split())
    with (ROOT / "docs/results/equal_bytes/equal_bytes.csv").open(newline="") as file:
        agents = {row["agent"]: row for row in csv.DictReader(file)}
    texts = {f"{width} wide 8 bits": f"{width} wide" for width in (16, 64)}
    texts |= {f"{sparsity} % 8 bits": f"{sparsity} % sparse" for sparsity in (90, 95, 98)}
    for label, text in texts.items():
        kept, size = f"{float(agents[label]['ratio']):.0%}".replace("%", " %"), f"{float(agents[label]['bytes']):,.0f}"
        assert re.search(rf"{text} (keeps )?{kept} (of the full agent's return )?in {size}", page), (label, kept, size)
    # What each returned before it was quantized, by what the full agent returned then
    folder, before = ROOT / "docs/results", {}
    for cell in cells_of(read_grid(folder / "equal_bytes/grid.yml"), trainable=False):
        with (folder / "runs" / cell.spec(1).key / "evaluations.csv").open(newline="") as file:
            before[cell.label] = {row["step"]: float(row["return"]) for row in csv.DictReader(file)}["250000"]
    shares = [100 * value / before["dense"] for label, value in before.items() if label != "dense"]
    assert len(shares) == 6
    assert f"all six lay between {min(shares):.0f} and {max(shares):.0f} % of what the full agent returned then" in page
