"""Every sub-command looks at everything first: a mistake is one line on standard error, exit code 2, nothing written."""

import shlex
from pathlib import Path

import pytest
import yaml

from sb3_sparse.benchmark.__main__ import main as benchmark
from sb3_sparse.cli.main import EPILOG, ZOO_HELP, main, make_parser
from sb3_sparse.tuning.arguments import with_question
from sb3_sparse.zoo.presets import presets_folder
from sb3_sparse.zoo.sections import check_hyperparameters, zoo_configuration
from tests.helpers import assert_refused

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
    (main, ["enjoy", "--algo", "td3", "--env", "Pendulum-v1", "-f", "nowhere"], "nowhere/td3 folder was not found"),
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


def test_help_is_no_mistake(capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", "-h"])
    assert end.value.code == 0
    assert "usage: sb3-sparse report" in capsys.readouterr().out


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
