"""``sb3-sparse tune`` end to end: real trainings, a killed worker, a killed study that is resumed, what comes out of it."""

import argparse
import csv
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import fields

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rl_zoo3.utils import get_class_by_name
from stable_baselines3 import SAC

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.callbacks.base import TopologyCallback
from sb3_sparse.cli.main import main
from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.training import check_trainable, model_file
from sb3_sparse.tuning import command as command_module
from sb3_sparse.tuning import configuration, jobs, results, sampling, session, study, tables, timing
from sb3_sparse.tuning.arguments import add_tune_arguments, with_question
from sb3_sparse.tuning.figure import plot_front
from sb3_sparse.tuning.front import find_front
from sb3_sparse.tuning.questions import FrontQuestion, KeepQuestion
from sb3_sparse.tuning.sparsest import find_sparsest
from sb3_sparse.tuning.storage import open_storage
from sb3_sparse.utils.command_line import hyperparameter
from sb3_sparse.zoo.presets import presets_folder
from tests.helpers import equal_state
from tests.runs.subjects import make_result
from tests.tuning import postgresql
from tests.tuning.subjects import make_subject, section

TASK = ["--algo", "sac", "--env", "Pendulum-v1"]
SHORT = [
    "-n",
    "120",
    "--episodes",
    "2",
    "--params",
    "learning_starts:60",
    "batch_size:16",
    "policy_kwargs:{net_arch: [16, 16]}",
]
# Long enough to be killed in
RUN = ["500" if argument == "120" else argument for argument in SHORT]
BUDGET = ["--search", "sparsity,distribution", "--trials", "5", "--workers", "2", "--report-seeds", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SB3_SPARSE_ENGINE": "torch"}


# --- End to end ---


def start(folder, *arguments):
    command = [sys.executable, "-m", "sb3_sparse.cli", "tune", *TASK, *RUN, *BUDGET, "-o", str(folder), *arguments]
    return subprocess.Popen(
        command, cwd=folder.parent, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 500
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study whose worker was killed, which was then killed as a whole, and was resumed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = tmp_path_factory.mktemp("tune") / "out"
    first = start(folder)
    store = wait_for(lambda: (folder / "study.db").exists() and Store(folder / "runs"), first)
    workers = wait_for(lambda: len(children(first.pid)) == 2 and children(first.pid), first)
    # In its first training
    wait_for(lambda: len(list(store.folder.glob("*/sac"))) >= 2, first)
    os.kill(workers[0], signal.SIGKILL)
    before = wait_for(lambda: len(store.results()) >= 2 and store.results(), first)
    orphans = children(first.pid)
    first.kill()
    first.communicate()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in orphans), None)
    found = optuna.load_study(study_name="sac-Pendulum-v1", storage=open_storage(f"sqlite:///{folder / 'study.db'}"))
    left = found.trials
    with pytest.raises(SystemExit) as refusal:
        main(["tune", *TASK, *RUN, *BUDGET, "-o", str(folder)])
    second = start(folder, "--resume", "--export-best", str(folder / "best"))
    output, progress = second.communicate(timeout=500)
    assert second.returncode == 0, progress
    return dict(
        folder=folder,
        store=store,
        study=found,
        before={result.spec.key: (folder / "runs" / result.spec.key / "result.json").read_text() for result in before},
        left=left,
        refusal=str(refusal.value),
        output=output,
        progress=progress,
    )


def found_subject(found):
    """What a study is about, as it says itself."""
    values = found.user_attrs["sb3_sparse"]
    return study.Subject(**{**values, "objectives": tuple(values["objectives"]), "search": tuple(values["search"])})


def children(pid):
    """Numbers of a process's workers: Python's resource tracker is none."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def test_a_killed_worker_and_a_killed_driver_cost_no_finished_training_and_double_none(finished):
    trials = finished["study"].trials
    names = {"dense", *(f"search-{index}" for index in range(1, 6))}
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert {trial.user_attrs["job"] for trial in trials} == names
    # What was sampled before is what was trained
    running = [
        trial for trial in finished["left"] if trial.state == TrialState.RUNNING and "configuration" in trial.user_attrs
    ]
    assert running
    for trial in running:
        again = trials[trial.number]
        assert (again.params, again.user_attrs["configuration"]) == (trial.params, trial.user_attrs["configuration"])
    # What was finished is as it was, to the byte
    for key, text in finished["before"].items():
        assert (finished["store"].folder / key / "result.json").read_text() == text
    assert all(result.state == "complete" for result in finished["store"].results())


def test_a_study_that_is_there_is_not_touched_without_resume(finished):
    message = finished["refusal"]
    assert "there is a study 'sac-Pendulum-v1' already" in message
    assert "give --resume to go on with it" in message


def test_progress_shows_trials_front_and_time(finished):
    lines = finished["progress"].splitlines()
    assert any(
        "search: 6 of 6 done, 0 running | front of" in line and "return at FLOPs of an action" in line for line in lines
    )
    assert any("report:" in line and "left" in line for line in lines)


def test_the_reference_is_dense_and_every_trial_meets_the_same_episodes(finished):
    rows = {row.number: row for row in results.tried(finished["study"])}
    (dense,) = [row for row in rows.values() if row.is_dense]
    assert dense.measures["sparsity"] == 0
    assert dense.measures["bytes"] == dense.measures["dense_bytes"]
    assert dense.parameters == {}
    for row in rows.values():
        assert row.measures["dense_flops"] == dense.measures["dense_flops"]
        assert row.is_dense or row.measures["sparsity"] == pytest.approx(1 - row.parameters["density_actor"], abs=0.02)
    # Sampled one by one, in whatever order, each from its own random numbers
    sampled = [row.parameters["density_actor"] for row in rows.values() if not row.is_dense]
    assert len(set(sampled)) == 5


def test_tables_figure_and_importances(finished):
    folder = finished["folder"]
    front = list(csv.DictReader((folder / "front.csv").open()))
    data = json.loads((folder / "front.json").read_text())
    trials = list(csv.DictReader((folder / "trials.csv").open()))
    report = list(csv.DictReader((folder / "report.csv").open()))
    importances = list(csv.DictReader((folder / "importances.csv").open()))
    assert finished["output"].splitlines()[0] == (folder / "front.md").read_text().splitlines()[0]
    assert [row["trial"] for row in front] == [str(point["trial"]) for point in data["front"]]
    assert len((folder / "front.md").read_text().splitlines()) == 2 + len(front)
    assert [row["dense"] for row in front].count("True") == 1
    assert len(trials) == 6
    assert {row["state"] for row in trials} == {"complete"}
    assert len(report) == 2 * len(front)
    for row, point in zip(front, data["front"], strict=True):
        # Reported is what other seeds gave, in other episodes
        own = [float(other["return"]) for other in report if other["trial"] == row["trial"]]
        assert point["returns"] == pytest.approx(own)
        assert float(row["return"]) == pytest.approx(np.mean(own))
        assert {other["seed"] for other in report if other["trial"] == row["trial"]} == {"1000", "1001"}
        assert yaml.safe_load(point["configuration"])["Pendulum-v1"]["n_timesteps"] == 500
        (tuned,) = [other for other in trials if other["trial"] == row["trial"]]
        assert tuned["return"] == row["tuning_return"] != row["return"]
    standing = [row for row in front if row["on_front"] == "True"]
    for first in standing:
        for second in standing:
            better = float(first["return"]) >= float(second["return"]) and float(first["flops"]) < float(second["flops"])
            assert not better or first is second
    assert {row["parameter"] for row in importances} == {"density_actor", "density_critic", "distribution"}
    for target in ("return", "flops", "front"):
        assert sum(float(row[target]) for row in importances) == pytest.approx(1, abs=1e-3)
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    figure = (folder / "front.svg").read_text()
    for text in ("FLOPs of an action", "dense reference", "SAC, Pendulum-v1, 500 steps", "2 reporting seeds x 2 episodes"):
        assert text in figure
    assert not list(folder.glob(".*partial*"))


def test_optuna_dashboard_finds_names_and_values(finished):
    found = finished["study"]
    assert found.metric_names == ["return", "FLOPs of an action"]
    assert found.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert {trial.number for trial in found.best_trials} == {
        row.number for row in results.tuning_front(found_subject(found), results.tried(found))
    }


def test_plain_rl_zoo3_trains_what_was_exported_to_the_same_agent(finished, tmp_path):
    best = finished["folder"] / "best"
    front = json.loads((finished["folder"] / "front.json").read_text())["front"]
    points = {point["trial"]: point for point in front if point["on_front"] and not point["dense"]}
    assert {file.name for file in best.iterdir()} == {"sac.yml", "dense.yml", *(f"trial-{number}.yml" for number in points)}
    text = (best / "sac.yml").read_text()
    number = next(
        number for number in points if yaml.safe_load((best / f"trial-{number}.yml").read_text()) == yaml.safe_load(text)
    )
    command = ["-m", "rl_zoo3.train", *TASK, "-conf", str(best / "sac.yml"), "--seed", "1000", "-f", "logs"]
    subprocess.run([sys.executable, *command], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    again = SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip")
    (row,) = [row for row in results.tried(finished["study"]) if row.number == number]
    subject, store = found_subject(finished["study"]), finished["store"]
    (spec,) = subject.reports(row.section, 1)
    reported = SAC.load(model_file(store.path(spec), spec))
    assert equal_state(again, reported)
    assert sparsity_report(again).inference.sparse == points[number]["flops"]


def test_another_study_is_refused_and_a_finished_one_trains_nothing(finished, capsys):
    folder = finished["folder"]
    common = ["tune", *TASK, *RUN, "--trials", "5", "--report-seeds", "2", "-o", str(folder), "--resume"]
    n_trials = len(finished["study"].trials)
    for other, difference in (
        (["--search", "sparsity"], r"`search` \['sparsity', 'distribution'\], not \['sparsity'\]"),
        (["--search", "sparsity,distribution", "--objectives", "return,bytes"], r"`objectives` \['return', 'flops'\], not"),
        (["--search", "sparsity,distribution", "--seed", "7"], "`seed` 0, not 7"),
        (["--search", "sparsity,distribution", "--method", "dense"], "`section` "),
    ):
        with pytest.raises(SystemExit, match=f"is about something else .*{difference}"):
            main([*common, *other])
    other_task = ["--algo", "td3", "--env", "Pendulum-v1", "--study-name", "sac-Pendulum-v1"]
    with pytest.raises(SystemExit, match="`algo` 'sac', not 'td3'"):
        main(["tune", *other_task, *RUN, "-o", str(folder), "--resume"])
    capsys.readouterr()
    main([*common, "--search", "sparsity,distribution"])
    assert capsys.readouterr().out.startswith("| configuration |")
    assert len(finished["study"].trials) == n_trials


def test_keep_command(tmp_path, monkeypatch, capsys, torch_engine):
    """Trainings are made up in test_question.py; here they are real, and long enough that dense is far above random."""
    (tmp_path / "ppo.yml").write_text(
        "CartPole-v1:\n  n_timesteps: 2048\n  policy: sb3_sparse.SparseActorCriticPolicy\n  n_steps: 256\n"
        "  learning_rate: 0.001\n  policy_kwargs: {net_arch: [32], sparsity: 0.5}\n"
    )
    command = [sys.executable, "-m", "sb3_sparse.cli", "tune", "--keep", "0.5", "--algo", "ppo", "--env", "CartPole-v1"]
    command += ["-conf", "ppo.yml", "--episodes", "4", "-o", "out", "--export-best", "best"]
    command += ["--trials", "5", "--report-seeds", "2", "--max-seeds", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("ppo on CartPole-v1, 2,048 steps: ")
    rows = list(csv.DictReader((tmp_path / "out/keep.csv").open()))
    searched = [(row["asked"], row["seed"]) for row in rows if row["report"] == "False"]
    assert searched == [("0.0", "0"), ("0.0", "1"), ("0.0", "2"), ("0.99", "0"), ("0.99", "1")]
    dense = [float(row["return"]) for row in rows if (row["report"], row["asked"]) == ("True", "0.0")]
    assert len(dense) == 2
    assert f"dense {np.mean(dense):.1f} (" in line
    # A network of 32 units with two weights each has learnt little
    assert "% sparse keeps " in line
    assert "an estimate, no sparsity was shown to keep 50 % at 90 % confidence" in line
    assert line.endswith("; --trials ended the search between 0 and 99 % sparse")
    exported = yaml.safe_load((tmp_path / "best/ppo.yml").read_text())["CartPole-v1"]
    assert exported["n_steps"] == 256
    # Asked again in the new form it goes on, and there is nothing left to train
    results_before = {file: file.stat().st_mtime for file in (tmp_path / "out/runs").glob("*/result.json")}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    main(["tune", "keep", "0.5", *command[6:], "--resume"])
    assert capsys.readouterr().out.splitlines() == [line]
    assert {file: file.stat().st_mtime for file in (tmp_path / "out/runs").glob("*/result.json")} == results_before
    with pytest.raises(SystemExit, match="there is a study 'ppo-CartPole-v1-keep' already"):
        main(command[3:])


def test_the_old_form_is_still_understood():
    assert with_question(["--algo", "sac"]) == ["front", "--algo", "sac"]
    for old in (["--keep", "0.9", "--algo", "sac"], ["--algo", "sac", "--keep=0.9"]):
        assert with_question(old) == ["keep", *old]
    for new in (["front", "--algo", "sac"], ["keep", "0.9"], ["--help"], ["-h"]):
        assert with_question(new) == new
    assert with_question([]) == ["front"]


# --- Mistakes, before anything is trained ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--objectives", "return,size"],
            r"`--objectives` names 'size'; the objectives are: return, flops, bytes, parameters, la",
        ),
        (["--objectives", "flops,bytes"], "`--objectives` must be return and one or more of the others"),
        (["--objectives", "return"], "must be return and one or more of the others"),
        (
            ["--search", "sparsity,everything"],
            "`search` names the unknown 'everything'; the searches are: stock, pattern, spar",
        ),
        (["--trials", "0"], "`--trials` must be an integer >= 1, got 0"),
        (["--workers", "0"], "`--workers` must be an integer >= 1, got 0"),
        (["--episodes", "0"], "`--episodes` must be an integer >= 1, got 0"),
        (["--seed", "998", "--seeds", "5"], "must not be among the reporting seeds, 1000 to 1002"),
        (["-n", "50"], "`--steps` 50 is too short: gradient steps begin at `learning_starts`=60"),
        (["-n", "0"], "`--steps` must be an integer >= 1, got 0"),
        (["--params", "learning_starts:60", "nonsense:1"], "rl-zoo3 cannot train sac on .*nonsense"),
        (["--method", "nothing"], "`method`='nothing' is unknown; the methods are: compress"),
        (["--method", "ds", "-conf", "x.yml"], "`--method` chooses a configuration file, and `--conf-file` names one"),
        (["-conf", "nowhere.yml"], "there is no file nowhere.yml"),
        (["-conf", "nowhere.py"], "nowhere.py must be a YAML file"),
        (["--env", "Pendulum-v99"], "`env`='Pendulum-v99' is unknown to gymnasium"),
        (["--algo", "trpo"], "`algo`='trpo' is not supported; supported are: "),
        (["--algo", "dqn", "--method", "dense", "--env", "Pendulum-v1"], "cannot train dqn on .*action spaces"),
        (["--storage", "study.txt"], "`--storage` must be a journal, NAME.log, or a database's URL"),
        (["--storage", "postgresql://user:secret@127.0.0.1:1/x"], "cannot be used, it is unreachable or locked"),
        (["--keep", "1.5"], r"`--keep` must be a number in \(0, 1\), got 1.5"),
        (["--keep", "0.9", "--confidence", "0.3"], r"`--confidence` must be in \[0.5, 1\), got 0.3"),
        (["--keep", "0.9", "--trials", "4"], "`--trials` must be an integer >= 5, got 4"),
        (["--keep", "0.9", "--most", "1"], r"`--most` must be a number in \(0, 1\), got 1.0"),
        (["--seed", "2000000"], "`--seed` must be an integer in .0, 999003., got 2000000"),
        (["--gym-packages", "no_such_package"], "`--gym-packages` 'no_such_package' cannot be imported"),
        (["-o", "/etc/passwd/x"], "`--output` /etc/passwd/x is a file, or lies in one: give a folder"),
        # What only shows when a training begins
        (["-conf", "updater.yml"], "cannot train sac on .*'q_net'"),
        (["--method", "rlx2", "--params", "buffer_size:1000"], "cannot train sac on .*`min_size`"),
        (
            ["-conf", "twice.yml"],
            "each entry of `callback` must name one callback, got .'sb3_sparse.RigL', 'sb3_sparse.SparsityL",
        ),
    ],
)
def test_mistakes_are_said_before_anything_starts(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    logger, updater = (
        {"sb3_sparse.SparsityLogger": {}},
        {"sb3_sparse.RigL": {"every": 10, "drop_fraction": 0.3, "networks": "q_net"}},
    )
    for name, callback in (("updater", [updater]), ("twice", [{**logger, **updater}])):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"Pendulum-v1": {**section(), "callback": callback}}))
    with pytest.raises(SystemExit, match=f"(?s)sb3-sparse: .*{message}"):
        main(["tune", *TASK, *SHORT, *arguments])
    assert list(tmp_path.rglob("*.csv")) == []
    assert not (tmp_path / "tune").exists()


def test_options_of_the_other_question_and_a_missing_fraction_are_errors(capsys):
    for other in (
        ["keep", "0.9", "--search", "sparsity"],
        ["front", "--confidence", "0.9"],
        ["--keep", "0.9", "--seeds", "2"],
    ):
        with pytest.raises(SystemExit) as error:
            main(["tune", *other, *TASK])
        assert error.value.code == 2
        assert f"unrecognized arguments: {other[-2]}" in capsys.readouterr().err
    for wrong in (["keep", *TASK], ["keep", "0.9", "--keep", "0.8", *TASK]):
        with pytest.raises(SystemExit, match="`tune keep` needs one FRACTION to keep"):
            main(["tune", *wrong])


def test_hyperparameters_are_numbers_where_they_look_like_it():
    values = ["1e-3", "3e-4", "1e5", "1.0e5", "5", "-2", "0.5", "true", "null", "auto", "lin_3e-4", "{net_arch: [4]}"]
    found = [hyperparameter(f"x:{value}")[1] for value in values]
    assert found == [1e-3, 3e-4, 100_000, 1e5, 5, -2, 0.5, True, None, "auto", "lin_3e-4", {"net_arch": [4]}]
    assert isinstance(found[2], int)
    assert isinstance(found[3], float)
    for value in ("x", "1x:2", ":3", "x:{"):
        with pytest.raises(argparse.ArgumentTypeError, match="a hyperparameter looks like learning_starts:1000, not"):
            hyperparameter(value)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from sb3_sparse.zoo import environments

    found = environments.find_spec
    monkeypatch.setattr(environments, "find_spec", lambda name: None if name == "mujoco" else found(name))
    with pytest.raises(SystemExit, match=r"'Hopper-v4' needs MuJoCo, .*pip install 'sb3-sparse\[mujoco\]'"):
        main(["tune", "--algo", "td3", "--env", "Hopper-v4"])
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-sparse\[tuning\]', or choose --sampler tpe"):
        sampling.check_sampler("gp")
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(SystemExit, match=r"tune needs rl-zoo3 .*pip install 'sb3-sparse\[tuning\]'"):
        main(["tune", *TASK])
    assert list(tmp_path.iterdir()) == []


def test_studies_of_others_are_refused(tmp_path):
    storage = open_storage(str(tmp_path / "study.log"))
    optuna.create_study(storage=storage, study_name="zoo")
    with pytest.raises(ValueError, match="the study 'zoo' was not made by sb3-sparse tune"):
        study.open_study(storage, "zoo", make_subject(), resume=True)


def test_two_machines_share_a_study_in_postgresql(tmp_path):
    """As far as two processes with folders of their own are two machines."""
    binaries = postgresql.find_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server: apt-get install postgresql")
    with postgresql.server(binaries) as url:
        both = []
        for name in ("one", "two"):
            command = [sys.executable, "-m", "sb3_sparse.cli", "tune", *TASK, *SHORT, "--trials", "3", "--report-seeds", "1"]
            command += ["--storage", url, "-o", str(tmp_path / name), "--resume"]
            both.append(
                subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        outputs = [[text.decode() for text in process.communicate(timeout=500)] for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        storage = open_storage(url)
        counts = []
        for name in ("sac-Pendulum-v1", "sac-Pendulum-v1-report"):
            found = jobs.by_job(optuna.load_study(study_name=name, storage=storage).trials)
            for trials in found.values():
                assert [trial.state for trial in trials] == [TrialState.COMPLETE]
            counts.append({trials[0].user_attrs[jobs.DRIVER] for trials in found.values()})
        assert len(jobs.by_job(optuna.load_study(study_name="sac-Pendulum-v1", storage=storage).trials)) == 4
        names = {(tmp_path / name / "driver").read_text() for name in ("one", "two")}
        assert all(drivers <= names for drivers in counts)
        # Each has every result that is reported, whoever trained it
        reported = [
            {result.spec.key for result in Store(tmp_path / name / "runs").results() if result.spec.seed == 1000}
            for name in ("one", "two")
        ]
        assert reported[0] == reported[1] != set()
        # All but the latency, which each of them measures for the models that it has
        tables_of = [[line.split("|")[:11] for line in output.splitlines() if line.startswith("| ")] for output, _ in outputs]
        assert tables_of[0] == tables_of[1]
    texts = [text for pair in outputs for text in pair]
    texts += [
        file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.suffix in (".csv", ".md", ".json", ".log")
    ]
    assert not any(postgresql.PASSWORD in text for text in texts)


# --- Trials that fail ---


@pytest.mark.parametrize("dense", ["complete", "failed"])
def test_a_search_of_which_nothing_can_be_trained_is_an_error(dense, tmp_path, monkeypatch):
    """The dense reference is no answer."""

    def execute(engine, spec, folder):
        future = Future()
        is_dense = configuration.evaluate(spec.section["policy_kwargs"])["sparsity"] == 0
        if dense == "failed" or not is_dense:
            future.set_result(RunResult(spec, "failed", reason="OverflowError: too sparse for this test"))
        else:
            future.set_result(make_result(spec))
        return future

    monkeypatch.setattr(session.LocalEngine, "submit", execute)
    with pytest.raises(
        SystemExit, match="none of the 2 sampled configurations was trained to its end: OverflowError: too sparse"
    ):
        main(["tune", *TASK, *SHORT, "--trials", "2", "-o", str(tmp_path)])
    with (tmp_path / "trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == [dense, "failed", "failed"]


@pytest.mark.parametrize("objectives", ["return,latency", "return,bytes"])
def test_latencies_are_measured_again_when_nothing_is_trained(objectives, tmp_path, monkeypatch):
    """Beside other workers a latency was 1,760 us, alone 533: what a worker says decides nothing."""
    measured = []

    def execute(engine, spec, folder):
        future = Future()
        result = make_result(spec, float(spec.section["policy_kwargs"]["sparsity"] == 0))
        model_file(folder, spec).parent.mkdir(parents=True)
        model_file(folder, spec).touch()
        result.costs["latency"] = 1760.0
        future.set_result(result)
        return future

    def latency(model):
        measured.append(model)
        return 500.0 + len(measured)

    monkeypatch.setattr(session.LocalEngine, "submit", execute)
    monkeypatch.setattr(timing, "load_model", lambda file, algo: file)
    monkeypatch.setattr(timing, "latency", latency)
    command = ["tune", *TASK, *SHORT, "--objectives", objectives, "--trials", "3", "--report-seeds", "1", "-o", str(tmp_path)]
    main([*command, "--sampler", "random"])
    with (tmp_path / "front.csv").open() as file:
        shown = [float(row["latency"]) for row in csv.DictReader(file)]
    with (tmp_path / "trials.csv").open() as file:
        trials = [float(row["latency"]) for row in csv.DictReader(file)]
    assert all(value < 600 for value in shown)
    assert len(set(shown)) == len(shown)
    assert all(value < 600 for value in trials) == ("latency" in objectives)
    # Each once
    n_measured = len(measured)
    assert len(set(measured)) == n_measured
    main([*command, "--sampler", "random", "--resume"])
    assert len(measured) == n_measured


# --- Parts ---


def test_default_names_do_not_collide():
    assert FrontQuestion(algo="sac", env="Pendulum-v1").name == "sac-Pendulum-v1"
    assert KeepQuestion(algo="sac", env="Pendulum-v1", fraction=0.9).name == "sac-Pendulum-v1-keep"
    assert FrontQuestion(algo="sac", env="ALE/Pong-v5").name == "sac-ALE-Pong-v5"


@pytest.mark.parametrize(("find", "kind"), [(find_front, FrontQuestion), (find_sparsest, KeepQuestion)])
def test_each_option_is_there_once(find, kind):
    """In a frozen dataclass, whose defaults the command line has too; there were fifteen arguments."""
    assert list(inspect.signature(find).parameters) == ["question", "place"]
    assert kind.__dataclass_params__.frozen
    parser = argparse.ArgumentParser()
    add_tune_arguments(parser)
    command = ["keep", "0.9"] if kind is KeepQuestion else ["front"]
    given = command_module._given(parser.parse_args([*command, *TASK]), kind)
    assert given | {"parameters": {}} == {"algo": "sac", "env": "Pendulum-v1", "parameters": {}} | (
        {"fraction": 0.9} if kind is KeepQuestion else {}
    )
    question = kind(**given | {"parameters": {}})
    named = {column.name: getattr(question, column.name) for column in fields(kind)}
    (sub,) = parser._subparsers._group_actions
    helps = {action.dest: action.help for action in sub.choices[command[0]]._actions}
    for name, default in named.items():
        found = re.search(r"\(default: ([\d.]+)\)", helps[name] or "")
        assert found is None or float(found[1]) == default, name


def test_a_search_of_stock_hyperparameters_has_a_sparse_policy_to_count():
    subject = make_subject(
        search=("stock",), section={**section(), "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [16]}}
    )
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    found = sampling.sample_section(trial, subject)
    assert found["policy"] == "sb3_sparse.SparseSACPolicy"
    assert configuration.evaluate(found["policy_kwargs"])["sparsity"] == 0.0


def test_one_impossible_sample_does_not_refuse_a_study(tmp_path):
    # With its first layer dense a network this small cannot be as sparse as most samples want it
    subject = make_subject(section=section(policy_kwargs={"net_arch": [16, 16], "dense_layers": "first"}))
    hopeless = make_subject(section=section(policy_kwargs={"net_arch": [16, 16], "nonsense": 1}))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    with pytest.raises(ValueError, match="cannot be reached"):
        check_trainable(subject.algo, subject.env, sampling.sample_section(trial, subject), tmp_path)
    session._check_samples(subject, tmp_path)
    with pytest.raises(ValueError, match=r"cannot train sac on .*nonsense"):
        session._check_samples(hopeless, tmp_path)


def test_dense_and_sparse_relatives_of_a_configuration():
    base = {
        "policy": "MlpPolicy",
        "n_timesteps": 100,
        "policy_kwargs": "dict(net_arch=[8], activation_fn=nn.Tanh, sparsity={'actor': 0.9, 'critic': 0.0}, pattern='2:4')",
        "callback": ["sb3_sparse.SparsityLogger", {"sb3_sparse.RigL": {"every": 10}}],
        "replay_buffer_kwargs": {"n_steps": 3},
    }
    dense = configuration.dense(base, "td3")
    assert dense["policy"] == "sb3_sparse.SparseTD3Policy"
    assert dense["callback"] == ["sb3_sparse.SparsityLogger"]
    assert dense["replay_buffer_kwargs"] == {"n_steps": 3}
    kwargs = configuration.evaluate(dense["policy_kwargs"])
    assert (kwargs["sparsity"], kwargs["pattern"], kwargs["net_arch"]) == (0.0, "unstructured", [8])
    assert kwargs["activation_fn"].__name__ == "Tanh"
    sparse = configuration.with_sparsity({**base, "policy_kwargs": {"sparsity": {"actor": 0.9, "critic": 0.0}}}, "td3", 0.7)
    assert sparse["policy_kwargs"]["sparsity"] == {"actor": 0.7, "critic": 0.0}
    assert sparse["callback"] == base["callback"]
    gradual = {
        **base,
        "policy_kwargs": {"sparsity": 0.0},
        "callback": [{"sb3_sparse.GradualPruning": {"final_sparsity": {"actor": 0.9}}}],
    }
    assert configuration.with_sparsity(gradual, "td3", 0.7)["callback"] == [
        {"sb3_sparse.GradualPruning": {"final_sparsity": {"actor": 0.7}}}
    ]
    assert "callback" not in configuration.dense(gradual, "td3")


@pytest.mark.parametrize("algo", ["td3", "sac", "dqn"])
def test_nothing_prunes_the_dense_relative_of_a_preset(algo):
    """Its masks are full: a callback that changes them would refuse it when the training begins."""
    methods = sorted(file.parent.name for file in presets_folder().glob(f"*/{algo}.yml"))
    assert {"compress", "ds", "rlx2", "rnm", "static"} <= set(methods)
    for method in methods:
        sections = yaml.safe_load((presets_folder() / method / f"{algo}.yml").read_text())
        for entry in sections.values():
            found = configuration.dense(entry, algo).get("callback") or []
            for callback in [found] if isinstance(found, str) else found:
                (name,) = callback if isinstance(callback, dict) else [callback]
                assert not issubclass(get_class_by_name(name), TopologyCallback), (method, name)


@pytest.mark.parametrize("algo", ["a2c", "ppo", "ddpg", "dqn", "qrdqn", "sac", "td3", "tqc", "crossq", "ppo_lstm"])
@pytest.mark.parametrize("method", ["static", "dense", None])
def test_every_algorithm_has_a_configuration_to_begin_with(algo, method, tmp_path):
    """Three of them have presets; the others begin with rl-zoo3's own."""
    env = (
        "CartPole-v1"
        if algo in ("a2c", "ppo", "dqn", "qrdqn")
        else "CartPoleNoVel-v1"
        if algo == "ppo_lstm"
        else "Pendulum-v1"
    )
    if algo == "ppo_lstm":
        env = "PendulumNoVel-v1"
    found = configuration.load_section(algo, env, method=method, parameters={"n_timesteps": 100_000})
    kwargs = configuration.evaluate(found.get("policy_kwargs")) or {}
    if method == "dense":
        assert "sparsity" not in kwargs
        assert "Sparse" not in found["policy"]
    else:
        sparsity = kwargs["sparsity"]
        assert (set(sparsity.values()) if isinstance(sparsity, dict) else {sparsity}) == {0.8}
    assert configuration.evaluate(configuration.with_sparsity(found, algo, 0.5)["policy_kwargs"])["sparsity"] in (
        0.5,
        {"actor": 0.5, "critic": 0.5},
        {"q_net": 0.5},
    )
    check_trainable(algo, env, configuration.dense(found, algo), tmp_path)


def test_given_policy_kwargs_come_beside_the_methods():
    """``--params policy_kwargs:{net_arch: [16, 16]}`` cost a network its sparsity."""
    found = configuration.load_section("sac", "Pendulum-v1", parameters={"policy_kwargs": {"net_arch": [16, 16]}})
    assert found["policy_kwargs"] == {"sparsity": {"actor": 0.8, "critic": 0.8}, "distribution": "er", "net_arch": [16, 16]}
    base = {"policy_kwargs": "dict(net_arch=[8], activation_fn=nn.Tanh)", "gamma": 0.9}
    merged = configuration.merged(base, {"policy_kwargs": {"sparsity": 0.5}, "gamma": 0.8})
    kwargs = configuration.evaluate(merged["policy_kwargs"])
    assert (kwargs["net_arch"], kwargs["sparsity"], kwargs["activation_fn"].__name__) == ([8], 0.5, "Tanh")
    assert (merged["gamma"], base["gamma"]) == (0.8, 0.9)
    assert configuration.merged({}, {"policy_kwargs": {"net_arch": [4]}})["policy_kwargs"] == {"net_arch": [4]}
    with pytest.raises(ValueError, match="`--params` 'policy_kwargs' must be a map, got 3"):
        configuration.merged(base, {"policy_kwargs": 3})


@pytest.mark.parametrize("sampler", list(sampling.SAMPLERS))
def test_samplers_are_not_disturbed_by_the_reference_and_repeat_themselves(sampler):
    """With 12 trials of the past, and a dense reference without parameters among them."""
    subject = make_subject(sampler=sampler, search=("sparsity", "updater", "cadence"))
    sampled = []
    for has_reference in (True, False, True):
        storage = optuna.storages.InMemoryStorage()
        found = study.open_study(storage, "study", subject, resume=False)
        if has_reference:
            found.add_trial(optuna.create_trial(values=[0.0, 1.0], user_attrs={"job": "dense"}))
        past = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), directions=found.directions)
        for index in range(12):
            trial = past.ask()
            sampling.sample(trial, subject.search, "sac", subject.section, n_inputs=3)
            past.tell(trial, [float(index), float(index % 5)])
        found.add_trials(past.trials)
        trial = jobs.Jobs(found, storage, subject, ["next"]).claim()
        chosen = sampling.sample_next(found, trial, subject, 13)
        frozen = found.trials[trial.number]
        assert chosen == sampling.sample(
            optuna.trial.FixedTrial(frozen.params), subject.search, "sac", subject.section, n_inputs=3
        )
        sampled.append(frozen.params)
    assert sampled[0] == sampled[1] == sampled[2]


@pytest.mark.parametrize("sampler", ["gp", "random"])
def test_any_seed_that_is_allowed_seeds_a_sampler(sampler):
    subject = make_subject(sampler=sampler, seed=999_003)
    found = study.open_study(optuna.storages.InMemoryStorage(), "study", subject, resume=False)
    trial = jobs.Jobs(found, found._storage, subject, ["next"]).claim()
    assert sampling.sample_next(found, trial, subject, 30)


def test_points_that_fall_off_the_front_are_marked(tmp_path):
    subject = make_subject()
    measures = dict.fromkeys(results.MEASURES, 1.0)

    def tried(number, mean, size, state="complete"):
        return results.Row(
            number=number,
            is_dense=number == 0,
            state=state,
            reason="",
            tuned=mean,
            measures={**measures, "bytes": size},
            parameters={},
            configuration="",
        )

    rows = [
        tried(0, 100.0, 1000),
        tried(1, 90.0, 100),
        tried(2, 80.0, 50),
        tried(3, 70.0, 60),
        tried(4, math.nan, 1, "failed"),
    ]
    assert [row.number for row in results.tuning_front(subject, rows)] == [2, 1, 0]

    def reported(of, returns, size):
        specs = [subject.run({**subject.section, "batch_size": 16 + of}, seed, report=True) for seed in range(len(returns))]
        found = [
            make_result(spec, value) if math.isfinite(value) else make_result(spec, state="diverged")
            for spec, value in zip(specs, returns, strict=True)
        ]
        for result in found:
            result.costs["bytes"] = size
        return found

    report = {
        0: reported(0, [99.0, 101.0, math.nan], 1000),
        1: reported(1, [50.0, 52.0], 100),
        2: reported(2, [70.0, 70.0], 50),
    }
    points = results.points(subject, rows, report)
    assert [(point.number, point.on_front, point.mean, point.n_failed) for point in points] == [
        (2, True, 70.0, 0),
        (1, False, 51.0, 0),
        (0, True, 100.0, 1),
    ]
    assert points[1].interval() == pytest.approx((51 - 12.706, 51 + 12.706), abs=1e-2)
    text = tables.to_markdown(points)
    assert "| trial 1 | no |" in text
    assert "| 2 (few, 1 of 3 failed) |" in text
    files = plot_front(subject, rows, points, tmp_path / "front")
    assert [file.suffix for file in files] == [".png", ".svg"]
    figure = files[1].read_text()
    assert "fell off it when trained again" in figure
    # Few numbers on the logarithmic axis, which do not run into each other
    axis = re.search(r'<g id="matplotlib.axis_1">(.*?)<g id="matplotlib.axis_2">', figure, re.DOTALL)[1]
    assert re.findall(r">([^<>]+)</text>", axis) == ["50", "100", "200", "500", "1,000", "bytes"]
