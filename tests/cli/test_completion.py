"""What a shell offers behind ``sb3-sparse`` once it has read the script that ``sb3-sparse completion`` prints."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from sb3_sparse.cli import completion
from sb3_sparse.cli.main import main, make_parser
from sb3_sparse.tuning.merge import supported_algorithms
from tests.helpers import assert_refused


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """zsh's script, in a folder of functions."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "_sb3-sparse").write_text(completion.completion_script(make_parser(), "zsh"))
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """bash's script, in a file."""
    file = tmp_path_factory.mktemp("completion") / "sb3-sparse"
    file.write_text(completion.completion_script(make_parser(), "bash"))
    return file


def offered(script, words, folder):
    """What bash offers for the last of some words."""
    quoted = " ".join(f"'{word}'" for word in ("sb3-sparse", *words))
    commands = f"""
        source {script}
        function=$(complete -p sb3-sparse | sed -E 's/.*-F ([^ ]+).*/\\1/')
        COMP_WORDS=({quoted}); COMP_CWORD={len(words)}
        $function sb3-sparse "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", commands], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ex"], {"export"}),
        (["t"], {"train", "tune"}),
        (["export", "--to", ""], {"packed", "onnx", "c", "cortex-m"}),
        (["prune", "--distribution", "er"], {"er", "erk"}),
        (["train", "--checkpoint-"], {"--checkpoint-every", "--checkpoint-minutes", "--checkpoint-keep"}),
        (["train", "--method", "rlx2/s"], {"rlx2/set", "rlx2/static"}),
        (["train", "-P", "--algo", ""], set(supported_algorithms())),
        (["train", "--study"], {"--study-name"}),
        (["train", "--acc"], {"--accelerate"}),
        (["train", "--vec-env", ""], {"dummy", "subproc"}),
        (["enjoy", "--no-r"], {"--no-render"}),
        (["report", ""], {"agent.zip", "logs"}),
        (["plot", "compression", ""], {"agent.zip", "logs"}),
        (["train", "--resume", ""], {"logs"}),
        (["train", "--conf-file", "a"], {"agent.zip"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_offers(words, expected, script, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "agent.zip").touch()
    assert set(offered(script, words, tmp_path)) == expected


class Terminal:
    """A zsh at a terminal, as somebody types into it."""

    def __init__(self, folder, functions):
        self.terminal, theirs = pty.openpty()
        own = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "LINES": "50"}
        streams = dict(stdin=theirs, stdout=theirs, stderr=theirs)
        self.shell = subprocess.Popen(["zsh", "-f", "-i"], cwd=folder, env=own, start_new_session=True, **streams)
        os.close(theirs)
        # The answer is not what is echoed of the question
        self.answer(f"fpath=({functions} $fpath); autoload -Uz compinit && compinit -u -D; echo is-'ready'\n", "is-ready")

    def answer(self, typed, expected):
        """What comes back until the expected is there, or for half a minute."""
        os.write(self.terminal, typed.encode())
        found, deadline = "", time.monotonic() + 30
        while expected not in found and time.monotonic() < deadline:
            if select.select([self.terminal], [], [], 0.1)[0]:
                found += os.read(self.terminal, 65536).decode(errors="replace")
        return found

    def close(self):
        self.shell.kill()
        self.shell.wait()
        os.close(self.terminal)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("tr", "sb3-sparse train "),
        ("train --acc", "sb3-sparse train --accelerate "),
        ("train --method rlx2/st", "sb3-sparse train --method rlx2/static "),
        ("export --to co", "sb3-sparse export --to cortex-m "),
        ("report ag", "sb3-sparse report agent.zip "),
    ],
)
def test_zsh_completes(typed, expected, functions, tmp_path):
    (tmp_path / "agent.zip").touch()
    terminal = Terminal(tmp_path, functions)
    try:
        assert expected in terminal.answer(f"sb3-sparse {typed}\t", expected)
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_scripts_are_printed_and_their_shells_can_read_them(shell, capsys, tmp_path):
    main(["completion", shell])
    file = tmp_path / "script"
    file.write_text(capsys.readouterr().out)
    assert "sb3-sparse" in file.read_text()
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", str(file)], check=True)


def test_without_rl_zoo3_its_options_are_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3.train", None)
    script = completion.completion_script(make_parser(), "bash")
    assert "--method" in script
    assert "--study-name" in script  # tune's
    assert "--no-optim-plots" not in script


def test_mistakes(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_refused(main, ["completion", "cmd"], "argument shell: invalid choice: 'cmd'", capsys)
    assert_refused(main, ["completion"], "the following arguments are required: shell", capsys)
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert_refused(main, ["completion", "bash"], "pip install 'sb3-sparse[completion]'", capsys)
