"""Bars of commands that play episodes: on a terminal they say how far it is, elsewhere nothing is in the way."""

import io
import re
import sys

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse.cli.main import main
from sb3_sparse.cli.progress import can_show_progress, progress_bars
from sb3_sparse.export.check import check
from sb3_sparse.export.exporter import make_artefact
from tests.cli.test_export import zoo_run  # noqa: F401
from tests.export.subjects import known
from tests.helpers import RandomEnv, make_model

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True

    @property
    def bars(self) -> list[str]:
        """How the bars look in the end: lines from the last time that all were drawn."""
        lines = [_CONTROL.sub("", line) for line in re.split(r"[\r\n]+", self.getvalue())]
        last = {re.split("  +| [━╸╺]", line)[0]: line for line in lines if "━" in line}
        return [re.sub("[━╸╺ ]+", " ", line) for line in last.values()]


def as_terminal(monkeypatch, stream):
    """Make a terminal of a standard stream. Not by a fixture: pytest puts its own in place between set-up and test."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(f"sys.{stream}", terminal)
    return terminal


COMMANDS = {
    "card": (["--episodes", "3"], ["episodes 3/3"]),
    "export": (
        ["--to", "packed", "--check", "--episodes", "2", "--observations", "20"],
        ["episodes of the model 2/2", "episodes of the export 2/2", "sets of observations 2/2"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_shows_how_far_it_is(command, zoo_run, monkeypatch, tmp_path, capsys):  # noqa: F811
    options, expected = COMMANDS[command]
    terminal = as_terminal(monkeypatch, "stderr")
    main([command, str(zoo_run[0]), "-o", str(tmp_path / "out"), *options])
    assert [re.sub(r" \d+:\d\d:\d\d.*", "", bar) for bar in terminal.bars] == expected
    # What the command prints is not mixed with it
    assert "━" not in capsys.readouterr().out


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_elsewhere_nothing_is_shown(command, missing, zoo_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    """In a log, and without rich."""
    errors = io.StringIO()
    if missing:
        errors = as_terminal(monkeypatch, "stderr")
        monkeypatch.setitem(sys.modules, "rich", None)
    else:
        monkeypatch.setattr("sys.stderr", errors)
    main([command, str(zoo_run[0]), "-o", str(tmp_path / "out"), *COMMANDS[command][0]])
    assert errors.getvalue() == ""
    assert "written to" in capsys.readouterr().out


def _fail_on_the_way():
    with progress_bars() as watch:
        watch("episodes", 1, 4)
        raise ValueError("no")


def test_a_mistake_ends_the_bars(monkeypatch):
    terminal = as_terminal(monkeypatch, "stderr")
    with pytest.raises(ValueError, match="no"):
        _fail_on_the_way()
    (bar,) = terminal.bars
    assert bar.startswith("episodes 1/4")
    # The cursor, which bars hide, is there again
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_what_a_check_tells():
    """Every episode once, the model's before the export's."""
    told = []
    model = known(SAC)
    env = DummyVecEnv([RandomEnv])
    artefact = make_artefact(model, "packed")
    check(artefact, model, None, env, n_observations=20, n_episodes=3, watch=lambda *news: told.append(news))
    expected = [("episodes of the model", n, 3) for n in range(4)] + [("episodes of the export", n, 3) for n in range(4)]
    assert told == [*expected, *(("sets of observations", n, 2) for n in range(3))]


def test_training_further_shows_its_bar_where_it_is_looked_at(monkeypatch, tmp_path, capsys):
    """Stable-Baselines3's bar goes to standard output: with that in a file it stood between the lines of the report."""
    pytest.importorskip("tqdm")
    make_model(SAC, sparse=False, env="Pendulum-v1").save(tmp_path / "agent.zip")
    command = ["prune", str(tmp_path / "agent.zip"), "--sparsity", "0.5", "--env", "Pendulum-v1", "--force", "--finetune=40"]
    as_terminal(monkeypatch, "stderr")
    main(command)
    assert not can_show_progress()
    assert "━" not in capsys.readouterr().out
    output = as_terminal(monkeypatch, "stdout")
    main(command)
    assert any("20/20" in bar for bar in output.bars)
