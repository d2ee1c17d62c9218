"""Searches through the real rl-zoo3: plain, and by sb3-sparse train. Each of the zoo's known bugs has a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import FixedTrial, TrialState
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import DQN, TD3

from sb3_sparse import sparsity_report
from sb3_sparse.cli.main import main
from sb3_sparse.cli.zoo import _checked_searches
from sb3_sparse.conversion.loading import find_model_file
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.tuning import zoo
from sb3_sparse.tuning.stock import stock_sampler
from sb3_sparse.tuning.trials import find_trial
from sb3_sparse.tuning.zoo import register_searches
from sb3_sparse.zoo.sections import as_yaml, read_section, zoo_configuration
from tests.helpers import assert_invariants

CARTPOLE = {
    "n_timesteps": 150,
    "policy": "sb3_sparse.SparseDQNPolicy",
    "learning_starts": 50,
    "policy_kwargs": "dict(sparsity=0.5, distribution='er', net_arch=[32, 24])",
    "callback": ["sb3_sparse.SparsityLogger", {"sb3_sparse.RigL": {"every": 5, "drop_fraction": 0.3, "moments": "keep"}}],
}
PENDULUM = {
    "n_timesteps": 150,
    "policy": "sb3_sparse.SparseTD3Policy",
    "learning_starts": 50,
    "noise_type": "normal",
    "noise_std": 0.1,
    "policy_kwargs": {"sparsity": 0.8, "initial_mask": "magnitude", "net_arch": [32, 24]},
    "callback": {"sb3_sparse.SearchFor": {"search": "sparsity, updater, n_step"}},
}
SHORT = ["--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots", "--seed", "1"]
#: What makes two models of an algorithm the same before any training.
SETTINGS = [
    *("policy_class", "policy_kwargs", "learning_rate", "gamma", "tau", "batch_size", "buffer_size", "train_freq"),
    *("gradient_steps", "learning_starts", "replay_buffer_class", "replay_buffer_kwargs", "n_steps"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test in a folder of its own, with rl-zoo3's registries as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch")
    samplers, converters = dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER)
    yield
    for registry, before in ((HYPERPARAMS_SAMPLER, samplers), (HYPERPARAMS_CONVERTER, converters)):
        registry.clear()
        registry.update(before)


def configure(section, env="CartPole-v1", name="c.yml"):
    Path(name).write_text(as_yaml(env, section))
    return ["-conf", name]


def search_cartpole(section, *arguments):
    task = ["train", "--algo", "dqn", "--env", "CartPole-v1", *configure(section), *SHORT]
    main([*task, "--optimize", "--storage", "s.log", "--study-name", "s", *arguments])


def study_of(storage, name="s"):
    if storage.endswith(".log"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    return optuna.load_study(study_name=name, storage=storage)


def settings_of(model):
    values = {name: getattr(model, name, None) for name in SETTINGS}
    values["learning_rate"] = model.lr_schedule(1.0)
    values["noise"] = repr(model.action_noise)
    report = sparsity_report(model)
    return values | {"sparsity": {layer.name: layer.n_active for layer in report.layers}}


def manager(algo, env, configuration, **kwargs):
    """rl-zoo3's, as train makes it, ready to search."""
    import argparse

    arguments = argparse.Namespace()
    made = ExperimentManager(arguments, algo, env, "logs", config=configuration, optimize_hyperparameters=True, **kwargs)
    made.setup_experiment()
    return made


def plain(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rl_zoo3.train", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


# --- End to end ---


def test_plain_zoo_searches_and_retrains(tmp_path):
    """No flag but the configuration file; a found trial trains with what its search trained it with, and so does its text."""
    common = ["--algo", "td3", "--env", "Pendulum-v1", *SHORT, "--storage", "s.log", "--study-name", "s"]
    conf = configure(PENDULUM, "Pendulum-v1")
    search = plain(*common, *conf, "--optimize", "--n-trials", "2", "--optimization-log-path", "trials", "--pruner", "none")
    assert search.returncode == 0, search.stdout + search.stderr
    assert "Searching for: sparsity, updater, n_step" in search.stdout
    assert list(Path("logs/td3").glob("report_*.csv"))
    trials = study_of("s.log").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    for trial in trials:
        assert {"density_actor", "density_critic", "updater", "n_step"} <= trial.params.keys()
        section = yaml.safe_load(trial.user_attrs["configuration"])["Pendulum-v1"]
        assert section["policy_kwargs"].keys() == {"sparsity", "initial_mask", "net_arch"}
    trial = trials[1]
    trained = TD3.load(f"trials/trial_{trial.number}/best_model.zip")
    assert_invariants(trained)
    # The configuration has changed since; the trial knows
    configure({**PENDULUM, "policy_kwargs": {"sparsity": 0.1}}, "Pendulum-v1")
    again = plain(*common, *conf, "--gym-packages", "sb3_sparse", "--trial-id", "1", "--eval-freq", "-1")
    assert again.returncode == 0, again.stdout + again.stderr
    Path("found.yml").write_text(trial.user_attrs["configuration"])
    main(["train", "--algo", "td3", "--env", "Pendulum-v1", "-conf", "found.yml", "--eval-freq", "-1", "--seed", "1"])
    models = [TD3.load(f"logs/td3/Pendulum-v1_{run}/Pendulum-v1.zip") for run in (2, 3)]
    assert settings_of(models[0]) == settings_of(models[1]) == settings_of(trained)
    # Nothing of what rl-zoo3 saves with a run needs more than YAML
    saved = yaml.load(Path("logs/td3/Pendulum-v1_2/Pendulum-v1/config.yml").read_text(), yaml.UnsafeLoader)
    assert dict(saved) == yaml.safe_load(trial.user_attrs["configuration"])["Pendulum-v1"]


def test_own_command_with_a_database(capsys):
    """--search wins over the file, threads do not mix their callbacks, and trial 0 is a trial like any other."""
    conf = configure({**CARTPOLE, "callback": [*CARTPOLE["callback"], {"sb3_sparse.SearchFor": {"search": "n_step"}}]})
    common = ["train", "--algo", "dqn", "--env", "CartPole-v1", "--storage", "sqlite:///s.db", "--study-name", "my study/1"]
    search = ["--optimize", "--search", "sparsity,cadence,drop_fraction", "--n-trials", "4", "--n-jobs", "2"]
    main([*common, *conf, *SHORT, *search, "--sampler", "random", "--pruner", "halving", "--optimization-log-path", "trials"])
    trials = study_of("sqlite:///s.db", "my study/1").trials
    assert len(trials) == 4
    names = {"density_q_net", "mask_updates", "drop_fraction", "drop_schedule"}
    assert all(trial.params.keys() == names for trial in trials)
    for trial in trials:
        section = yaml.safe_load(trial.user_attrs["configuration"])["CartPole-v1"]
        assert section["policy_kwargs"]["sparsity"] == {"q_net": round(1 - trial.params["density_q_net"], 6)}
        rigl = section["callback"][1]["sb3_sparse.RigL"]
        assert (rigl["drop_fraction"], rigl["moments"]) == (trial.params["drop_fraction"], "keep")
    finished = next(trial for trial in trials if Path(f"trials/trial_{trial.number}/best_model.zip").exists())
    for number in (0, finished.number):
        main([*common, "--trial-id", str(number), "--eval-freq", "-1", "--seed", "1"])
        file = Path(f"logs/dqn/my_study_1_trial_{number}.yml")
        assert f"Trial {number} of my study/1 trains as in {file}" in capsys.readouterr().out
        assert file.read_text() == trials[number].user_attrs["configuration"]
    again = DQN.load(find_model_file(Path("logs/dqn")))
    assert settings_of(again) == settings_of(DQN.load(f"trials/trial_{finished.number}/best_model.zip"))


def test_without_a_name_the_stock_search_is_merged():
    """rl-zoo3 replaces policy_kwargs by what its sampler says; of a sparse configuration that would leave nothing."""
    search_cartpole(CARTPOLE, "--n-trials", "1", "--optimization-log-path", "trials")
    (trial,) = study_of("s.log").trials
    assert trial.params.keys() == study_params("dqn")
    model = DQN.load("trials/trial_0/best_model.zip")
    assert sparsity_report(model).networks["q_net"].sparsity == pytest.approx(0.5, abs=0.01)
    assert model.policy_kwargs["distribution"] == "er"


def study_params(algo):
    trial = optuna.create_study().ask()
    stock_sampler(algo)(trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
    return trial.params.keys()


def test_networks_that_cannot_be_are_pruned_trials_and_the_search_goes_on(capsys):
    """rl-zoo3 makes models where nothing catches an error, so this one would end the search."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for density in (0.02, 0.5):
        study.enqueue_trial({"density_q_net": density})
    section = {**CARTPOLE, "policy_kwargs": {"sparsity": 0.2, "net_arch": [16], "dense_layers": "last"}}
    search_cartpole(section, "--n-trials", "2", "--search", "sparsity")
    assert "Trial 0 cannot be trained: `sparsity`=0.98 of network 'q_net' cannot be reached" in capsys.readouterr().out
    assert [trial.state for trial in study_of("s.log").trials] == [TrialState.PRUNED, TrialState.COMPLETE]


def test_what_a_callback_refuses_is_a_pruned_trial(capsys):
    """rl-zoo3 prunes for ValueError and AssertionError, and these come while it looks."""
    rigl = {"sb3_sparse.RigL": {"every": 5, "drop_fraction": 0.3, "networks": "critic"}}
    configure({**CARTPOLE, "callback": rigl})
    made = manager("dqn", "CartPole-v1", "c.yml", n_evaluations=1, n_eval_episodes=1)
    register_searches()
    with pytest.raises(optuna.TrialPruned):
        made.objective(optuna.create_study().ask())
    assert "unknown network 'critic'" in capsys.readouterr().out


# --- Whoever has nothing sparse ---


@pytest.mark.parametrize("algo", ["td3", "dqn"])
def test_stock_searches_are_stock(algo):
    register_searches()
    register_searches()
    assert stock_sampler(algo).__module__ == "rl_zoo3.hyperparams_opt"
    context = {"using_her_replay_buffer": False, "her_kwargs": {}}
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = HYPERPARAMS_SAMPLER[algo](trial, 2, 1, context)
    assert repr(sampled) == repr(stock_sampler(algo)(FixedTrial(trial.params), 2, 1, context))
    converted = HYPERPARAMS_CONVERTER[algo]({**trial.params, "noise_type": "normal"})
    assert converted["policy_kwargs"] == sampled["policy_kwargs"]
    # Called by a manager as well
    env, callback = "CartPole-v1" if algo == "dqn" else "Pendulum-v1", "rl_zoo3.callbacks.RawStatisticsCallback"
    configure({"n_timesteps": 100, "policy": "MlpPolicy", "callback": callback}, env)
    made = manager(algo, env, "c.yml")

    class Stop(Exception):
        pass

    def create_envs(*args, **kwargs):
        raise Stop

    made.create_envs = create_envs  # what the objective does once it has sampled
    another = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    with pytest.raises(Stop):
        made.objective(another)
    assert another.params == trial.params
    assert "configuration" not in another.user_attrs
    assert made.specified_callbacks == callback


def test_stock_trials_without_noise_can_be_loaded():
    """TD3.__init__() got an unexpected keyword argument 'noise_type'."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    study = optuna.create_study(study_name="s", storage=storage)
    params = dict(one_minus_gamma=0.02, batch_size_pow=3, learning_rate=1e-3, train_freq=3, tau=0.02, net_arch="small")
    spaces = {name: [value] for name, value in params.items()} | {"noise_type": [None, "normal"], "noise_std": [0.25]}
    for noise_type in (None, "normal"):
        study.enqueue_trial({"noise_type": noise_type})
        trial = study.ask({name: optuna.distributions.CategoricalDistribution(values) for name, values in spaces.items()})
        study.tell(trial, 0.0)
    conf = configure({"n_timesteps": 120, "policy": "MlpPolicy", "noise_type": "normal", "noise_std": 0.5}, "Pendulum-v1")
    common = ["train", "--algo", "td3", "--env", "Pendulum-v1", *conf, "--storage", "s.log", "--study-name", "s"]
    for number, std in ((0, "0.5"), (1, "0.25")):
        main([*common, "--trial-id", str(number), "--eval-freq", "-1"])
        model = TD3.load(find_model_file(Path("logs/td3")))
        assert (model.gamma, model.batch_size, model.train_freq.frequency, model.gradient_steps) == (0.98, 8, 3, 3)
        assert repr(model.action_noise) == f"NormalActionNoise(mu=[0.], sigma=[{std}])"
        assert not isinstance(model.policy, SparsePolicyMixin)
    # rl-zoo3's own way to the same
    register_searches()
    made = ExperimentManager(None, "td3", "Pendulum-v1", "logs", config="c.yml", storage="s.log", study_name="s", trial_id=-2)
    section, _ = made.read_hyperparameters()
    assert (section["noise_type"], section["noise_std"], section["gamma"]) == ("normal", 0.5, 0.98)


def test_algorithms_that_the_zoo_does_not_search():
    """crossq is an algorithm of rl-zoo3, but not of its samplers."""
    section = {"n_timesteps": 60, "policy": "MlpPolicy", "learning_starts": 20, "policy_kwargs": {"net_arch": [16, 16]}}
    conf = configure(section, "Pendulum-v1")
    common = ["train", "--algo", "crossq", "--env", "Pendulum-v1", *conf, *SHORT, "--optimize", "--n-trials", "1"]
    main([*common, "--search", "sparsity,updater", "--storage", "s.log", "--study-name", "s"])
    assert study_of("s.log").best_trial.params.keys() == {"density_actor", "density_critic", "updater"}
    with pytest.raises(SystemExit, match="rl-zoo3 has no sampler for crossq"):
        main(common)


# --- Configurations ---


def test_python_configurations(tmp_path, monkeypatch):
    """As a file and as a module, of which rl-zoo3 takes the dicts apart."""
    code = f"import torch as th\nimport sb3_sparse\nhyperparams = {{'CartPole-v1': {CARTPOLE!r}}}\n"
    code += "hyperparams['CartPole-v1']['policy_kwargs'] = dict(sparsity=0.5, net_arch=[8, 8], activation_fn=th.nn.Tanh)\n"
    Path("my_searches.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_searches.py", "my_searches"):
        before = read_section(name, "CartPole-v1")
        common = ["train", "--algo", "dqn", "--env", "CartPole-v1", "-conf", name, *SHORT, "--optimize", "--n-trials", "1"]
        main([*common, "--search", "sparsity", "--storage", f"{name}.log", "--study-name", "s"])
        (trial,) = study_of(f"{name}.log").trials
        assert trial.state is TrialState.COMPLETE
        section = yaml.safe_load(trial.user_attrs["configuration"])["CartPole-v1"]
        assert "nn.Tanh" in section["policy_kwargs"]
        assert section.keys() == before.keys()


def test_reading_as_the_zoo_does():
    assert read_section(zoo_configuration("dqn"), "CartPole-v1")["policy"] == "MlpPolicy"
    configure({"n_timesteps": 1}, "default")
    assert read_section("c.yml", "Pendulum-v1") == {"n_timesteps": 1}
    configure({"n_timesteps": 1}, "Acrobot-v1")
    with pytest.raises(ValueError, match=r"c.yml has no section for 'Pendulum-v1'; it has: Acrobot-v1"):
        read_section("c.yml", "Pendulum-v1")
    for text, message in (("[", "c.yml is not YAML"), ("1", "c.yml has no sections of environments")):
        Path("c.yml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_section("c.yml", "Pendulum-v1")
    with pytest.raises(FileNotFoundError, match="'nowhere' is neither a file"):
        read_section("nowhere", "Pendulum-v1")
    with pytest.raises(ValueError, match=r"`policy`=<class .*> cannot be written to a YAML file"):
        as_yaml("Pendulum-v1", {"policy": TD3})


# --- What is refused before anything trains ---


def trial_of(storage, study="s", number=0):
    return ["--trial-id", str(number), "--storage", storage, "--study-name", study]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "sparsety", "--optimize"], "unknown 'sparsety'; the searches are: stock, pattern, sparsity"),
        (["--search", "sparsity"], "`--search` 'sparsity' says what `--optimize` searches: give that too"),
        (["--search", "updater,pruning", "--optimize"], "both 'updater' and 'pruning'"),
        (["--search", "pruning", "--optimize"], "it has RigL, and a network has one updater"),
        (["--search", "n_step", "-optimize", "-params", "optimize_memory_usage:True"], "`optimize_memory_usage`"),
        (["--trial-id", "0"], "`--trial-id` names a trial of a study: give its `--storage` and `--study-name` too"),
        (trial_of("x.log"), "`storage` 'x.log': there is no such file"),
        (trial_of("sqlite:///x.db"), "`storage` 'sqlite:///x.db': there is no such file"),
        (trial_of("nosql://x"), "`--storage` 'nosql://x' is neither a journal (NAME.log) nor a database"),
        (trial_of("s.log", "x"), "`study-name` 'x' is not in s.log; there are: s, t"),
        (trial_of("s.log", number=2), "`trial-id` 2 is not in study 's'; there are: 0 to 1"),
        (trial_of("s.log", "t"), "`trial-id` 0 is not in study 't'; there are: none"),
        (trial_of("s.log"), "trial 0 is one of td3 on Pendulum-v1, not of dqn on CartPole-v1"),
        (trial_of("s.log", number=1), "not those of rl-zoo3's own search: 'one_minus_gamma' is missing"),
    ],
)
def test_bad_command_lines(arguments, message, monkeypatch):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    study = optuna.create_study(study_name="s", storage=storage)
    optuna.create_study(study_name="t", storage=storage)
    first = study.ask()
    first.set_user_attr("algo", "td3")
    first.set_user_attr("configuration", as_yaml("Pendulum-v1", PENDULUM))
    study.ask()
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr("rl_zoo3.train.train", lambda: pytest.fail("this is too late"))
    configure(CARTPOLE)
    with pytest.raises(SystemExit) as error:
        main(["train", "--algo", "dqn", "--env", "CartPole-v1", "-conf", "c.yml", *arguments])
    assert str(error.value).startswith("sb3-sparse: ")
    assert message in str(error.value)
    assert sorted(Path().rglob("*")) == sorted([*before, Path("c.yml")])


def test_the_report_needs_pandas(monkeypatch):
    """rl-zoo3 only misses it after its last trial."""
    monkeypatch.setattr("sb3_sparse.tuning.zoo.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pandas, which is not installed: pip install 'sb3-sparse\[tuning\]'"):
        main(["train", "--algo", "dqn", "--env", "CartPole-v1", *configure(CARTPOLE), "--optimize"])


def test_mistakes_of_a_configuration_are_not_the_trials():
    register_searches()
    configure({**CARTPOLE, "policy_kwargs": {"sparsity": 0.5, "dense_layer": "last"}})
    made = manager("dqn", "CartPole-v1", "c.yml")
    with pytest.raises(TypeError, match="unknown policy_kwargs 'dense_layer' \\(did you mean 'dense_layers'"):
        made.objective(optuna.create_study().ask())


def test_a_study_belongs_to_one_algorithm_and_environment():
    conf = configure(CARTPOLE)
    search = [*SHORT, "--optimize", "--search", "sparsity", "--n-trials", "1", "--storage", "s.log", "--study-name", "s"]
    main(["train", "--algo", "dqn", "--env", "CartPole-v1", *conf, *search])
    configure(CARTPOLE, "Acrobot-v1")
    with pytest.raises(
        SystemExit, match="'s' is a study of dqn on CartPole-v1, not of dqn on Acrobot-v1: choose another name"
    ):
        main(["train", "--algo", "dqn", "--env", "Acrobot-v1", *conf, *search])
    assert len(study_of("s.log").trials) == 1
    configure(CARTPOLE)
    main(["train", "--algo", "dqn", "--env", "CartPole-v1", *conf, *search])
    assert len(study_of("s.log").trials) == 2


def test_negative_numbers_count_from_the_end():
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    study = optuna.create_study(study_name="s", storage=storage)
    for _ in range(3):
        study.ask()
    assert find_trial("s.log", "s", -1).number == 2
    with pytest.raises(ValueError, match="`trial-id` -4"):
        find_trial("s.log", "s", -4)
    assert find_trial("s.log", "s", 0).number == 0


def test_steps_may_come_from_the_command_line(tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump({"Pendulum-v1": {"policy": "sb3_sparse.SparseTD3Policy"}}))
    arguments = ["--algo", "td3", "--env", "Pendulum-v1", "--optimize", "--search", "sparsity"]
    for steps in ([], ["-n", "-1"]):
        with pytest.raises(ValueError, match="`n_timesteps` is missing"):
            _checked_searches([*arguments, *steps], ["-conf", str(file)])
    assert _checked_searches([*arguments, "-n", "150"], ["-conf", str(file)]) == ["sparsity"]


def test_the_manager_is_not_searched_in_stack_frames(monkeypatch):
    """Its wrapped methods say which one it is; that somebody has one as a local variable says nothing."""
    for file in Path(zoo.__file__).parent.glob("*.py"):
        assert not re.search(r"_getframe|currentframe|inspect\.stack|f_back|f_locals", file.read_text()), file.name
    register_searches()
    configure(CARTPOLE)
    monkeypatch.setattr(zoo, "_session", lambda found: pytest.fail(f"found {found}"))

    def sample(self, trial):
        return HYPERPARAMS_SAMPLER["dqn"](trial, 0, 1, {"using_her_replay_buffer": False})

    assert "learning_rate" in sample(manager("dqn", "CartPole-v1", "c.yml"), optuna.create_study().ask())
