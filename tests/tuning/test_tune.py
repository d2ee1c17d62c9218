"""``sb3-sparse tune`` end to end: real trainings, a killed worker, a killed study that is resumed, what comes out of it."""

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from stable_baselines3 import SAC

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.cli.main import main
from sb3_sparse.tuning import configuration, objectives, queue, results, sampling, session, study, tables, training, worker
from sb3_sparse.tuning.figure import plot_front
from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.pool import Pool
from sb3_sparse.tuning.processes import identity
from sb3_sparse.tuning.storage import open_storage
from sb3_sparse.utils.command_line import hyperparameter
from tests.helpers import equal_state
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
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study whose worker was killed, which was then killed as a whole, and was resumed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = tmp_path_factory.mktemp("tune") / "out"
    first = start(folder)
    wait_for((folder / "study.log").exists, first)
    storage = open_storage(str(folder / "study.log"))
    found = wait_for(lambda: study.load_study(storage, "sac-Pendulum-v1"), first)

    def running():
        return [trial for trial in found.get_trials(states=(TrialState.RUNNING,)) if "configuration" in trial.user_attrs]

    victim = wait_for(running, first)[0]
    os.kill(victim.user_attrs["worker"]["pid"], signal.SIGKILL)
    # Somebody else finishes it
    wait_for(lambda: any(trial.user_attrs.get("replaces") == victim.number for trial in found.trials), first)
    wait_for(lambda: found.get_trials(states=(TrialState.COMPLETE,)), first)
    orphans = [trial.user_attrs["worker"]["pid"] for trial in wait_for(running, first)]
    for pid in [first.pid, *orphans]:
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    before = {trial.number: trial for trial in found.get_trials(states=(TrialState.COMPLETE,))}
    with pytest.raises(SystemExit) as refusal:
        main(["tune", *TASK, *RUN, *BUDGET, "-o", str(folder)])
    second = start(folder, "--resume", "--export-best", str(folder / "best"))
    output, progress = second.communicate(timeout=500)
    assert second.returncode == 0, progress
    return dict(
        folder=folder,
        study=found,
        victim=victim,
        before=before,
        refusal=str(refusal.value),
        output=output,
        progress=progress,
    )


def test_killed_workers_cost_no_finished_trial_and_double_none(finished):
    trials = finished["study"].trials
    jobs = queue.by_job(trials)
    assert set(jobs) == {"dense", *(f"search-{index}" for index in range(1, 6))}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(trial.user_attrs["job"] for trial in complete) == sorted(jobs)
    for number, trial in finished["before"].items():
        assert (trials[number].values, trials[number].params) == (trial.values, trial.params)
    killed = finished["victim"].number
    assert queue.was_killed(trials[killed])
    (replacement,) = [trial for trial in trials if trial.user_attrs.get("replaces") == killed]
    assert replacement.params == trials[killed].params
    assert replacement.user_attrs["configuration"] == trials[killed].user_attrs["configuration"]


def test_a_study_that_is_there_is_not_touched_without_resume(finished):
    message = finished["refusal"]
    assert "there is a study 'sac-Pendulum-v1' with" in message
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
        row.number for row in results.tuning_front(study.subject_of(found), results.tried(found))
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
    (row,) = [
        row
        for row in results.tried(
            study.load_study(open_storage(str(finished["folder"] / "study.log")), "sac-Pendulum-v1-report")
        )
        if (row.attributes["of"], row.attributes["seed"]) == (number, 1000)
    ]
    folder = finished["folder"] / f"trials/sac-Pendulum-v1-report-{row.number}/seed-1000"
    reported = SAC.load(folder / "sac/Pendulum-v1_1/Pendulum-v1.zip")
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


def test_keep_command(tmp_path):
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
    # A network of 32 units with two weights each has learnt nothing
    assert "no sparsity was shown to keep 50 % at 90 % confidence" in line
    assert line.endswith("; --trials ended the search between 0 and 99 % sparse")
    exported = yaml.safe_load((tmp_path / "best/ppo.yml").read_text())["CartPole-v1"]
    assert exported["policy_kwargs"]["sparsity"] == 0
    assert exported["n_steps"] == 256


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
        (["--keep", "0.9", "--search", "sparsity"], "`--search` cannot be combined with `--keep`"),
        (["--keep", "0.9", "--trials", "4"], "`--trials` must be an integer >= 5, got 4"),
        (["--confidence", "0.9"], "`--confidence` belongs to `--keep`"),
        (["--most", "0.9"], "`--most` belongs to `--keep`"),
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
        for name, n_jobs in (("sac-Pendulum-v1", 4), ("sac-Pendulum-v1-report", None)):
            jobs = queue.by_job(study.load_study(storage, name).trials)
            assert n_jobs is None or len(jobs) == n_jobs
            for trials in jobs.values():
                assert [trial.state for trial in trials] == [TrialState.COMPLETE]
                assert "worker" in trials[0].user_attrs
        tables_of = [output.partition("written to")[0] for output, _ in outputs]
        assert tables_of[0] == tables_of[1]
    texts = [text for pair in outputs for text in pair]
    texts += [
        file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.suffix in (".csv", ".md", ".json", ".log")
    ]
    assert not any(postgresql.PASSWORD in text for text in texts)


# --- Trials that fail ---


def test_failed_and_diverged_trials_are_recorded_and_not_fatal(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    subject = make_subject()
    found = study.open_study(storage, "study", subject, resume=False)

    def job(name, **changes):
        text = as_yaml(subject.env, configuration.dense(section(**changes), "sac"))
        return queue.Job(name, {"configuration": text, "seed": 0})

    jobs = [job("diverges", learning_rate=1e20), job("fails", gamma="no number"), job("works")]
    queue.fill(found, jobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while (trial := queue.claim(found, storage)) is not None:
            worker._do(found, storage, trial, tmp_path)
    diverged, failed, works = results.tried(found)
    assert (diverged.state, failed.state, works.state) == ("diverged", "failed", "complete")
    assert "is not finite after" in diverged.reason
    assert failed.reason.startswith("TypeError: ")
    assert math.isfinite(works.mean)
    assert all(queue.is_over(trials) for trials in queue.by_job(found.trials).values())
    rows = list(csv.DictReader(tables.to_csv(tables.trial_rows(results.tried(found))).splitlines()))
    assert [row["state"] for row in rows] == ["diverged", "failed", "complete"]
    assert rows[0]["return"] == ""


def test_a_worker_whose_trial_was_given_away_records_nothing(tmp_path, capsys):
    storage = optuna.storages.InMemoryStorage()
    found = study.open_study(storage, "study", make_subject(), resume=False)
    queue.fill(found, [queue.Job("a")])
    trial = queue.claim(found, storage)
    storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    worker._record(found, trial, {"flops": 2.0}, [1.0, 2.0], None)
    worker._record(found, trial, {}, None, "too late")
    assert found.trials[0].values is None
    assert queue.was_killed(found.trials[0])
    assert capsys.readouterr().out.count("was given to another process") == 2


@pytest.mark.parametrize("dense", ["complete", "failed"])
def test_a_search_of_which_nothing_can_be_trained_is_an_error(dense, tmp_path, monkeypatch):
    """The dense reference is no answer."""

    def run_trial(section, *_):
        if dense == "failed" or configuration.evaluate(section["policy_kwargs"])["sparsity"] != 0:
            raise OverflowError("too sparse for this test")
        return {"returns": [1.0], RETURN: 1.0, **dict.fromkeys(results.MEASURES, 1.0)}

    def run(pool, found, jobs, watch):
        queue.fill(found, jobs)
        while (trial := queue.claim(found, pool.storage)) is not None:
            worker._do(found, pool.storage, trial, pool.folder)

    monkeypatch.setattr(worker, "run_trial", run_trial)
    monkeypatch.setattr(Pool, "run", run)
    with pytest.raises(
        SystemExit, match="none of the 2 sampled configurations was trained to its end: OverflowError: too sparse"
    ):
        main(["tune", *TASK, *SHORT, "--trials", "2", "-o", str(tmp_path)])
    with (tmp_path / "trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == [dense, "failed", "failed"]


# --- Parts ---


def test_default_names_do_not_collide():
    assert session.default_name(make_subject()) == "sac-Pendulum-v1"
    assert session.default_name(make_subject("keep")) == "sac-Pendulum-v1-keep"
    assert session.default_name(make_subject(env="ALE/Pong-v5")) == "sac-ALE-Pong-v5"


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
        training.check_trainable(subject.task, sampling.sample_section(trial, subject), tmp_path)
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


def test_episodes_do_not_depend_on_what_was_played_before(tmp_path):
    subject = make_subject()
    file = tmp_path / "sac.yml"
    file.write_text(as_yaml(subject.env, section()))
    manager = training.make_manager(subject.task, file, 0, tmp_path, {"buffer_size": 1})
    manager.setup_experiment()[0].get_env().close()
    env = manager.create_envs(1, eval_env=True)
    policy = training.RandomPolicy(env)
    first = training.episode_returns(policy, env, [5, 6, 7])
    assert training.episode_returns(policy, env, [7]) == first[2:]
    assert training.episode_returns(policy, env, [6, 5]) == [first[1], first[0]]
    assert len(set(first)) == 3


def test_costs_are_the_reports(tmp_path):
    model = SAC("SparseMlpPolicy", "Pendulum-v1", policy_kwargs=dict(sparsity=0.9, net_arch=[32, 32]), device="cpu")
    found = objectives.costs(model)
    size = sparsity_report(model).networks["actor"]
    assert (found["bytes"], found["parameters"]) == (size.bytes_with_indices, size.n_parameters)
    assert (found["flops"], found["dense_bytes"]) == (sparsity_report(model).inference.sparse, size.bytes_dense)
    assert found["sparsity"] == pytest.approx(size.sparsity, abs=1e-6)
    assert found["latency"] > 0


@pytest.mark.parametrize("sampler", list(sampling.SAMPLERS))
def test_samplers_are_not_disturbed_by_the_reference_and_repeat_themselves(sampler):
    """With 12 trials of the past, and a dense reference without parameters among them."""
    subject = make_subject(sampler=sampler, search=("sparsity", "updater", "cadence"))
    sampled = []
    for has_reference in (True, False, True):
        storage = optuna.storages.InMemoryStorage()
        found = study.open_study(storage, "study", subject, resume=False)
        if has_reference:
            found.add_trial(optuna.create_trial(values=[0.0, 1.0], user_attrs={"dense": True}))
        past = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), directions=found.directions)
        for index in range(12):
            trial = past.ask()
            sampling.sample(trial, subject.search, "sac", subject.section, n_inputs=3)
            past.tell(trial, [float(index), float(index % 5)])
        found.add_trials(past.trials)
        queue.fill(found, [queue.Job("next", {"index": 13})])
        trial = queue.claim(found, storage)
        chosen = sampling.sample_next(found, trial, subject)
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
    queue.fill(found, [queue.Job("next", {"index": 30})])
    assert sampling.sample_next(found, queue.claim(found, found._storage), subject)


def test_points_that_fall_off_the_front_are_marked(tmp_path):
    subject = make_subject()
    measures = dict.fromkeys(results.MEASURES, 1.0)

    def tried(number, mean, size, state="complete", **attributes):
        return results.Tried(
            number=number,
            is_dense=number == 0,
            state=state,
            reason="",
            mean=mean,
            measures={**measures, "bytes": size},
            parameters={},
            configuration="",
            attributes=attributes,
        )

    rows = [
        tried(0, 100.0, 1000),
        tried(1, 90.0, 100),
        tried(2, 80.0, 50),
        tried(3, 70.0, 60),
        tried(4, math.nan, 1, "failed"),
    ]
    assert [row.number for row in results.tuning_front(subject, rows)] == [2, 1, 0]
    report = [
        *(tried(10 + seed, mean, 1000, of=0, seed=seed) for seed, mean in enumerate([99.0, 101.0])),
        *(tried(20 + seed, mean, 100, of=1, seed=seed) for seed, mean in enumerate([50.0, 52.0])),
        *(tried(30 + seed, 70.0, 50, of=2, seed=seed) for seed in range(2)),
        tried(40, math.nan, 1000, "diverged", of=0, seed=2),
    ]
    points = results.points(subject, rows, report)
    assert [(point.row.number, point.on_front, point.mean, point.n_failed) for point in points] == [
        (2, True, 70.0, 0),
        (1, False, 51.0, 0),
        (0, True, 100.0, 1),
    ]
    assert points[1].interval() == pytest.approx((51 - 12.706, 51 + 12.706), abs=1e-2)
    text = tables.to_markdown(subject, points)
    assert "| trial 1 | no |" in text
    assert "| 2 (1 of 3 failed) |" in text
    files = plot_front(subject, rows, points, tmp_path / "front")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert "fell off it when trained again" in files[1].read_text()


def test_identity_is_json():
    assert json.loads(json.dumps(identity())) == identity()
    assert study.Subject.from_json(json.loads(json.dumps(make_subject().to_json()))) == make_subject()
