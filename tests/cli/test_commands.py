"""Every sub-command looks at everything first: a mistake is one line on standard error, exit code 2, nothing written."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import TD3 as TD3Algorithm

from sb3_sparse.benchmark.__main__ import main as benchmark
from sb3_sparse.cli.main import EPILOG, ZOO_HELP, main, make_parser
from sb3_sparse.tuning.arguments import with_question
from sb3_sparse.utils.command_line import READER_GONE, command
from sb3_sparse.zoo.presets import presets_folder
from sb3_sparse.zoo.sections import check_hyperparameters, zoo_configuration
from tests.helpers import assert_refused, make_model

TD3 = ["train", "--algo", "td3", "--env", "Pendulum-v1"]
MISTAKES = [
    (main, [], "the following arguments are required: command"),
    (main, ["nope"], "invalid choice: 'nope'"),
    (main, ["report"], "sb3-sparse report: the following arguments are required: model"),
    (main, ["report", "none.zip"], "there is no model at none.zip"),
    (main, ["report", "none.zip", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
    (main, ["report", ".", "--html"], "is neither the folder of a sweep"),
    (main, ["prune", "none.zip", "--sparsity", "0.9"], "there is no model at none.zip"),
    (main, ["prune", "none.zip", "--finetune", "many"], "argument --finetune: invalid int value: 'many'"),
    (main, ["export", "none.zip", "--to", "c"], "there is no model at none.zip"),
    (main, ["export", "none.zip", "--to", "pdf"], "argument --to: invalid choice: 'pdf'"),
    (main, ["searches", "--nope"], "unrecognized arguments: --nope"),
    (main, ["tune"], "the following arguments are required: --algo, --env"),
    (main, ["tune", "front", "--algo", "td3", "--env", "Nope-v1"], "Nope"),
    (main, ["sweep", "none.yml"], "there is no grid none.yml"),
    (main, ["compare"], "the following arguments are required: METHOD, --env"),
    (main, ["compare", "static", "--algo", "td3", "--env", "Nope-v1"], "Nope"),
    (main, ["plot"], "the following arguments are required: figure"),
    (main, ["plot", "compression", "none.csv", "-o", "x"], "there is no file none.csv"),
    (main, ["train", "--algo", "td3", "--env", "Nope-v1"], "Nope-v1 not found in gym registry"),
    (main, ["train", "--algo", "nope", "--env", "Pendulum-v1"], "`--algo` 'nope' is not supported"),
    (main, [*TD3, "-n", "many"], "sb3-sparse train: argument -n/--n-timesteps: invalid int value: 'many'"),
    (main, [*TD3, "--method", "nope"], "`method`='nope' is unknown"),
    (main, [*TD3, "--conf-file", "none.yml"], "`conf-file` none.yml: there is no such file"),
    (
        main,
        [*TD3, "--hyperparams", "buffersize:9"],
        "hyperparameter 'buffersize' is unknown to TD3 (did you mean 'buffer_size'?)",
    ),
    (main, [*TD3, "--checkpoint-every", "soon"], "argument --checkpoint-every: invalid int value: 'soon'"),
    (main, [*TD3, "-n", "-5"], "`--n-timesteps` must be an integer >= 1, got -5"),
    (main, [*TD3, "--seed", "x"], "sb3-sparse train: argument --seed: invalid int value: 'x'"),
    (main, [*TD3, "--nope"], "sb3-sparse train: unrecognized arguments: --nope"),
    (main, ["enjoy", "--algo", "td3", "--env", "Pendulum-v1", "-f", "nowhere"], "nowhere/td3 folder was not found"),
    (main, [*TD3, "-i", "none.zip"], "`--trained-agent` none.zip is no file that ends in .zip"),
    (main, [*TD3, "--hyperparams", "x"], "`--hyperparams` takes NAME:VALUE"),
    (main, [*TD3, "--hyperparams", "policy_kwargs:{"], "`--hyperparams` takes NAME:VALUE"),
    (main, [*TD3, "--device", "gpu"], "`--device` 'gpu' is none that torch knows"),
    (main, [*TD3, "--method", "static", "-params", "policy_kwargs:dict(sparsity=2)"], "`sparsity` must be a number in [0, 1)"),
    (main, ["train", "--algo", "td3", "--env", "CartPole-v1"], "Action noise can only be used with Box action space"),
    (main, ["train", "--algo", "dqn", "--env", "Pendulum-v1"], "The algorithm only supports"),
    (main, ["train", "--accelerate"], "`--accelerate` knows the train() of TD3, DDPG, SAC, DQN, not that of ppo"),
    (main, [*TD3, "--accelerate"], "`--accelerate` is for sparse policies, got 'MlpPolicy'"),
    (main, ["enjoy", "-n", "x"], "sb3-sparse enjoy: argument -n/--n-timesteps: invalid int value: 'x'"),
    (main, ["report", ""], "the path of the model is empty"),
    (benchmark, [], "the following arguments are required"),
    (benchmark, ["overhead", "--rounds", "0"], "argument --rounds: an integer from 1 is needed, not '0'"),
    (benchmark, ["overhead", "--sparsity", "2"], "argument --sparsity: a sparsity is a number in [0, 1), not '2'"),
    (benchmark, ["step", "--net", "abc"], "argument --net: hidden widths look like 256,256, not 'abc'"),
    (benchmark, ["kernels", "--density", "2"], "argument --density: a density is a number in (0, 1], not '2'"),
    (benchmark, ["train", "--env", "Nope-v1"], "argument --env: environment 'Nope-v1' cannot be made"),
    (benchmark, ["compression", "--steps", "0"], "argument -n/--steps: an integer from 1 is needed, not '0'"),
    (benchmark, ["samplers", "--trials", "0"], "argument --trials: an integer from 1 is needed, not '0'"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "message"), MISTAKES, ids=[" ".join(case[1]) or "nothing" for case in MISTAKES]
)
def test_mistakes_are_one_line_and_write_nothing(command, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_refused(command, arguments, message, capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model for Pendulum-v1, in a folder with a folder and a file that is no text."""
    folder = tmp_path_factory.mktemp("saved")
    make_model(TD3Algorithm, env="Pendulum-v1", policy_kwargs=dict(sparsity=0.5)).save(folder / "agent.zip")
    (folder / "there").mkdir()
    (folder / "grid.yml").write_bytes(b"\xff\xfe\x00")
    return folder


PRUNE, CARD = ["prune", "agent.zip", "--sparsity", "0.9"], ["card", "agent.zip"]
TUNE = ["--finetune", "500", "--env"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PRUNE, "-o", "there"], "`--output` there is a folder: give a file"),
        ([*PRUNE, "-o", "/proc/new.zip"], "`--output` /proc/new.zip cannot be written"),
        ([*PRUNE, "-o", "none/new.zip"], "`--output` none/new.zip: there is no folder none"),
        ([*PRUNE, *TUNE, "CartPole-v1"], "`--env` 'CartPole-v1' does not fit the model: its observation space is Box("),
        ([*CARD, "-o", "/proc/card.md"], "`--output` /proc/card.md cannot be written"),
        ([*CARD, "-o", "there"], "`--output` there is a folder: give a file"),
        ([*CARD, "--env", "CartPole-v1"], "`--env` 'CartPole-v1' does not fit the model"),
        (["export", "agent.zip", "--to", "onnx", "--layout", "small"], "`layout` is for `to`='c' and 'cortex-m', got 'onnx'"),
        (["export", "agent.zip", "--to", "c", "-o", "none/x"], "`--output` none/x: there is no folder none"),
        (["export", "agent.zip", "--to", "packed", "--check", "--env", "CartPole-v1"], "does not fit the model"),
        (["export", "agent.zip", "--to", "c", "--bits", "8", "--env", "CartPole-v1"], "does not fit the model"),
        ([*TD3, "-f", "grid.yml"], "`--log-folder` grid.yml is a file, or lies in one: give a folder"),
        (["sweep", "grid.yml"], "the grid grid.yml is not YAML"),
        (["plot", "compression", "grid.yml", "-o", "x"], "grid.yml is not a text file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_with_files_that_are_there(arguments, message, saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    assert_refused(main, arguments, message, capsys)


def test_help_is_no_mistake(capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", "-h"])
    assert end.value.code == 0
    assert "usage: sb3-sparse report" in capsys.readouterr().out


def test_the_help_of_train_has_both_programs_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "-h"])
    assert end.value.code == 0
    help_of_both = capsys.readouterr().out
    assert help_of_both.index("--checkpoint-every") < help_of_both.index("rl-zoo3's:") < help_of_both.index("--n-timesteps")


@pytest.mark.parametrize("algo", ["a2c", "crossq", "ddpg", "dqn", "ppo", "ppo_lstm", "qrdqn", "sac", "td3", "tqc"])
def test_every_entry_of_rl_zoo3s_configurations_and_of_the_presets_is_known(algo):
    from rl_zoo3.utils import ALGOS

    presets = list(presets_folder().rglob(f"{algo}.yml"))
    files = [Path(zoo_configuration(algo)), *presets]
    assert presets or algo not in ("td3", "sac")
    for file in files:
        for section in yaml.safe_load(file.read_text()).values():
            check_hyperparameters(ALGOS[algo], section)


def test_the_examples_of_the_help_are_understood():
    examples = [shlex.split(line)[1:] for line in EPILOG.splitlines() if line.startswith("  sb3-sparse")]
    assert len(examples) >= 6
    for words in examples:
        if words[0] not in ZOO_HELP:
            make_parser().parse_args(["tune", *with_question(words[1:])] if words[0] == "tune" else words)


@pytest.mark.parametrize("arguments", [["searches"], ["-h"]])
def test_a_reader_that_has_enough_ends_a_command_in_silence(arguments):
    """As ``head`` does."""
    call = [sys.executable, "-c", "from sb3_sparse.cli.main import main; main()", *arguments]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == b""
    # Argparse does not mind if nobody reads its help
    assert process.returncode in ((READER_GONE,) if arguments == ["searches"] else (READER_GONE, 0))


def test_another_pipe_that_breaks_is_an_error(capfd, monkeypatch):
    with pytest.raises(SystemExit) as error, command("sb3-sparse"):
        raise BrokenPipeError("a worker is gone")
    assert error.value.code == 2
    assert capfd.readouterr().err == "sb3-sparse: a worker is gone\n"
    # No file at all: as in a notebook
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SystemExit) as error, command("sb3-sparse"):
        raise BrokenPipeError("a worker is gone")
    assert error.value.code == 2


def test_no_standard_output_at_all_is_no_error(monkeypatch):
    """As after ``>&-``."""
    monkeypatch.setattr(sys, "stdout", None)
    with command("sb3-sparse"):
        pass
    with pytest.raises(SystemExit) as error, command("sb3-sparse"):
        sys.exit(75)
    assert error.value.code == 75


def test_an_exit_code_outlives_a_reader_that_is_gone():
    call = [sys.executable, "-c"]
    call.append("import sys; from sb3_sparse.utils.command_line import command\nwith command('x'): print(1); sys.exit(75)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (75, b"")
