"""The compression experiment, its file and its figure; the preset's schedule."""

import math
import sys
import xml.etree.ElementTree as ET
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

import sb3_sparse
from sb3_sparse import preset
from sb3_sparse.benchmark import compression, csv_files
from sb3_sparse.benchmark.__main__ import main as benchmark
from sb3_sparse.benchmark.plots import plot_compression
from sb3_sparse.benchmark.results import VARIANTS, Result, add_results, experiments, read_results
from sb3_sparse.cli.main import main
from sb3_sparse.utils.figures import figure_files, position
from sb3_sparse.zoo.presets import preset_entry, presets_folder
from sb3_sparse.zoo.runs import ZooRun, make_training_env
from tests.helpers import assert_invariants, equal_state

# --- The preset ---


def entries(method, algo):
    return yaml.safe_load((presets_folder() / method / f"{algo}.yml").read_text())


@pytest.mark.parametrize("algo", ["sac", "dqn", "td3"])
def test_preset_is_the_dense_one_on_a_clock_of_120_percent(algo):
    # Entries of one anchor are one object
    compress, dense = ({env: deepcopy(entry) for env, entry in entries(m, algo).items()} for m in ("compress", "dense"))
    assert compress.keys() == dense.keys()
    for env, values in compress.items():
        stock = dense[env]
        assert values.pop("n_timesteps") == pytest.approx(1.2 * stock.pop("n_timesteps"), abs=1e-6)
        stock_exploration = stock.pop("exploration_fraction", 0.1 if algo == "dqn" else None)
        if stock_exploration is not None:
            assert 1.2 * values.pop("exploration_fraction") == pytest.approx(stock_exploration, rel=1e-12)
        pruning, quantization, _ = values.pop("callback")
        pruning, quantization = pruning["sb3_sparse.GradualPruning"], quantization["sb3_sparse.QuantizationAware"]
        moments = [1.2 * pruning["start"], 1.2 * pruning["stop"], 1.2 * quantization["start"]]
        assert moments == pytest.approx([0.2, 0.8, 1.0], rel=1e-12)
        network = "q_net" if algo == "dqn" else "actor"
        assert (pruning["final_sparsity"], quantization["bits"]) == ({network: 0.9}, 8)
        kwargs = values.pop("policy_kwargs")
        assert (kwargs.pop("sparsity"), kwargs.pop("distribution")) == (0.0, "erk")
        assert kwargs == stock.pop("policy_kwargs", {})
        assert values.pop("policy").startswith("sb3_sparse.policies.Sparse")
        stock.pop("policy")
        assert values == stock


class Record(BaseCallback):
    """Density and bits of the Q network at every environment step."""

    def __init__(self):
        super().__init__()
        self.densities, self.bits = {}, {}

    def _on_step(self):
        layers = self.model.policy.sparsifier.layers.values()
        n_weights = sum(layer.weight.numel() for layer in layers)
        self.densities[self.num_timesteps] = sum(layer.n_active for layer in layers) / n_weights
        self.bits[self.num_timesteps] = {layer.weight_bits for layer in layers}
        return True


SMALL = dict(learning_starts=10, train_freq=1, gradient_steps=1, batch_size=8, buffer_size=1000, device="cpu", seed=0)


def test_schedule_of_the_paper_to_the_step():
    """Figure 3 with N = 500: dense until 100, pruned by the cubic law until 400, frozen until 500, 8 bits until 600."""
    values = preset("compress", "dqn", "CartPole-v1")
    callbacks, _ = values.pop("callback"), values.pop("n_timesteps")
    model = DQN(env="CartPole-v1", **(values | SMALL))
    record = Record()
    model.learn(600, callback=[*callbacks, record])
    # The callback of step t sees what training did until step t - 1. Every third step has one of the 100 updates
    for t, density in record.densities.items():
        k = min(max((t - 1 - 100) // 3, 0), 100)
        assert density == pytest.approx(1 - 0.9 * (1 - (1 - k / 100) ** 3), abs=1e-4), t
    assert [event.timestep for event in callbacks[0].events] == list(range(103, 401, 3))
    assert all(bits == ({8} if t >= 500 else {32}) for t, bits in record.bits.items())
    assert_invariants(model)
    report = sb3_sparse.sparsity_report(model).networks["q_net"]
    assert report.papers_ratio == pytest.approx(40, rel=1e-3)
    assert report.real_ratio < 40


def test_dense_until_pruning_begins(auto_engine):
    """Until 20 % of N the preset is the dense preset on the same clock, bit for bit, exploration included."""
    values, stock = preset("compress", "dqn", "CartPole-v1"), preset("dense", "dqn", "CartPole-v1")
    callbacks = values.pop("callback")
    for entry in (values, stock):
        del entry["n_timesteps"]
    del stock["callback"]
    states = []
    for entry, callback, total in ((values, callbacks, 600), (stock, [], 500)):

        class Stop(BaseCallback):
            def _on_step(self):
                return self.num_timesteps < 101

        model = DQN(env="CartPole-v1", **(entry | SMALL))
        model.learn(total, callback=[*callback, Stop()])
        states.append(model)
    assert states[0].num_timesteps == states[1].num_timesteps == 101
    assert equal_state(*states, ignore_masks=True)
    assert states[0].exploration_rate == pytest.approx(states[1].exploration_rate, rel=1e-9)


def test_memory_of_the_atari_buffer():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    values = preset("compress", "dqn", "PongNoFrameskip-v4")
    env = make_training_env(ZooRun(config=preset_entry("compress", "dqn", "PongNoFrameskip-v4")), "PongNoFrameskip-v4", 1, 0)
    del values["callback"], values["n_timesteps"]

    def n_bytes(**kwargs):
        buffer = DQN(env=env, **(values | dict(buffer_size=100, device="cpu") | kwargs)).replay_buffer
        return sum(array.nbytes for array in (buffer.observations, getattr(buffer, "next_observations", np.zeros(0)))) / 100

    # What the preset's comment says
    assert n_bytes() == 56_448
    assert n_bytes() * values["buffer_size"] == pytest.approx(5.6e9, rel=0.01)
    halved = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    assert n_bytes(**halved) == 28_224
    # What cannot go together is refused at once, with the reason
    with pytest.raises(ValueError, match="handle_timeout_termination"):
        n_bytes(optimize_memory_usage=True)
    other = preset("rlx2", "dqn", "PongNoFrameskip-v4")
    del other["callback"], other["n_timesteps"]
    with pytest.raises(NotImplementedError, match=r"does not support `optimize_memory_usage=True`: that layout overwrites"):
        DQN(env=env, **(other | dict(buffer_size=100, optimize_memory_usage=True)))
    env.close()


# --- The file ---


def make_result(**kwargs):
    values = dict(
        algorithm="dqn",
        environment="CartPole-v1",
        variant="pruned",
        sparsity=0.9,
        bits=32,
        seed=0,
        steps=1000,
        parameters="",
        mean_return=1.5,
        std_return=0.5,
        episodes=20,
        papers_ratio=10.0,
        packed_bytes=120,
        dense_bytes=1000,
    )
    return Result(**(values | kwargs))


RESULTS = st.builds(
    make_result,
    variant=st.sampled_from(VARIANTS),
    sparsity=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 3),
    steps=st.integers(1, 3),
    parameters=st.sampled_from(["", "learning_starts=100", 'policy_kwargs={"net_arch": [8, 8]}']),
    mean_return=st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(RESULTS, max_size=8), st.lists(RESULTS, max_size=8))
def test_files_hold_every_agent_once_whatever_is_added(tmp_path_factory, first, second):
    file = tmp_path_factory.mktemp("results") / "a.csv"
    add_results(file, first)
    add_results(file, second)
    unique = {result.key: result for result in reversed([*first, *second])}
    read = read_results(file)
    assert {result.key: result for result in read} == unique
    assert len(read) == len(unique)
    assert [path.name for path in file.parent.iterdir()] == ["a.csv"]
    for experiment, members in experiments(read).items():
        assert members == [result for result in read if result.experiment == experiment]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.csv"
    add_results(file, [make_result()])
    before = file.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(csv_files, "astuple", fail)
    with pytest.raises(OSError, match="no space left"):
        add_results(file, [make_result(seed=1)])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["a,b", "1,2"], r"has the columns a, b; a file of compression results has algorithm, environment"),
        (lambda lines: [], r"has the columns \(none\)"),
        (lambda lines: [lines[0], lines[1].replace("1.5", "much")], "line 2: could not convert string to float: 'much'"),
        (lambda lines: [lines[0], "dqn,CartPole-v1"], "line 2: it has 12 values too few"),
        (lambda lines: [lines[0], lines[1] + ",7,8"], "line 2: it has 2 values too many"),
        (lambda lines: [lines[0], lines[1].replace("pruned", "prunned")], "line 2: `variant` must be one of dense, pruned"),
        (lambda lines: [lines[0], lines[1].replace("0.9", "90")], r"line 2: `sparsity` must be in \[0, 1\), got 90"),
        (lambda lines: [*lines, lines[1]], "line 3: there is another row of the same agent"),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    file = tmp_path / "a.csv"
    add_results(file, [make_result()])
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        read_results(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        add_results(file, [make_result(seed=5)])
    assert file.read_bytes() == before


# --- The experiment ---

TINY = ["--algo", "dqn", "--env", "CartPole-v1", "-n", "300", "--episodes", "2"]
PARAMS = ["--params", "learning_starts:50", "train_freq:4", "gradient_steps:2", "batch_size:8"]


def test_experiment_trains_what_is_missing_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "results.csv"
    command = ["compression", *TINY, *PARAMS, "-o", str(file), "--save", str(tmp_path), "--runs", str(tmp_path / "runs")]
    add = compression.add_results

    def add_once(*arguments):
        add(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "add_results", add_once)
    with pytest.raises(KeyboardInterrupt):
        benchmark([*command, "--sparsity", "0.5", "0.99", "--seeds", "1"])
    # What was over when the run was stopped is there
    assert [(row.variant, row.sparsity) for row in read_results(file)] == [("dense", 0), ("quantized", 0)]
    monkeypatch.setattr(compression, "add_results", add)
    benchmark([*command, "--sparsity", "0.5", "0.99", "--seeds", "1"])
    rows = {(row.variant, row.sparsity): row for row in read_results(file)}
    expected = [("dense", 0.0), ("quantized", 0.0)]
    expected += [(variant, s) for s in (0.5, 0.99) for variant in ("pruned", "pruned + quantized")]
    assert list(rows) == expected
    before, results = file.read_bytes(), sorted((tmp_path / "runs").glob("*/result.json"))
    times = [result.stat().st_mtime for result in results]
    assert len(results) == 3
    benchmark([*command, "--sparsity", "0.99", "0.5", "--seeds", "1"])
    # Nor what only the store remembers
    file.unlink()
    benchmark([*command, "--sparsity", "0.5", "0.99", "--seeds", "1"])
    assert file.read_bytes() == before
    assert [result.stat().st_mtime for result in results] == times
    for (variant, sparsity), row in rows.items():
        bits = 8 if "quantized" in variant else 32
        assert (row.bits, row.steps, row.episodes, row.seed) == (bits, 300, 2, 0)
        assert row.parameters == "batch_size=8 gradient_steps=2 learning_starts=50 train_freq=4"
        assert row.papers_ratio == pytest.approx(32 / bits / (1 - sparsity), rel=2e-3)
        # The very agent that was evaluated
        name = f"dqn-CartPole-v1-{variant.replace(' + ', '-')}-{sparsity:g}-seed0.zip"
        model = DQN.load(tmp_path / name)
        assert model.num_timesteps == (360 if bits == 8 else 300)
        size = sb3_sparse.sparsity_report(model).networks["q_net"]
        assert (size.bytes_with_indices, size.bytes_dense) == (row.packed_bytes, row.dense_bytes)
        assert size.papers_ratio == pytest.approx(row.papers_ratio, rel=1e-4)
    assert rows["pruned + quantized", 0.99].real_ratio < rows["pruned + quantized", 0.99].papers_ratio


def test_every_seed_meets_the_same_episodes():
    """Each had others, which looked like differences between seeds."""
    experiment = compression.Experiment("dqn", "CartPole-v1", steps=300, parameters={"learning_starts": 50})
    specs = [experiment.spec(0.9, seed) for seed in range(3)]
    assert len({spec.episode_seeds for spec in specs}) == 1
    assert [spec.checkpoints for spec in specs] == [(300,)] * 3
    assert specs[0].n_timesteps == 360


def test_default_number_of_steps_is_the_presets():
    experiment = compression.Experiment("sac", "Pendulum-v1")
    assert (experiment.steps, experiment.total) == (20_000, 24_000)
    pruning, quantization = experiment.section(0.95)["callback"]
    assert pruning["sb3_sparse.GradualPruning"]["final_sparsity"] == {"actor": 0.95}
    # Evaluated right before the step at which it begins
    assert quantization["sb3_sparse.QuantizationAware"]["start"] == 20_000
    assert experiment.spec(0.95, 0).checkpoints == (20_000,)
    assert [list(entry) for entry in experiment.section(0.0)["callback"]] == [["sb3_sparse.QuantizationAware"]]


def test_other_policy_kwargs_come_beside_the_presets():
    parameters = {"learning_starts": 10, "policy_kwargs": {"net_arch": [16, 8]}}
    experiment = compression.Experiment("dqn", "CartPole-v1", steps=300, parameters=parameters)
    assert experiment.section(0.0)["policy_kwargs"] == {"sparsity": 0.0, "distribution": "erk", "net_arch": [16, 8]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "policy_kwargs:{sparsity: 0.5}"], "`--params` 'policy_kwargs' must be a map without 'sparsity'"),
        (["--params", "policy_kwargs:3"], "`--params` 'policy_kwargs' must be a map .* got 3"),
        (["--env", "CartPol-v1"], "`env`='CartPol-v1' is unknown to gymnasium"),
        (["-n", "1000"], "`--steps` 1000 is too short: gradient steps begin at `learning_starts`=1000"),
        (["-n", "2", "--params", "learning_starts:0"], "`--steps` 2 is too short: 20 % more is no step more"),
        (["--params", "learning_start:10"], "cannot train dqn on .*unexpected keyword argument 'learning_start'"),
        (["--params", "callback:x"], "`--params` 'callback' cannot be changed here"),
        (["-o", "nowhere/a.csv"], "`--output`: there is no folder nowhere"),
        (["--save", "nowhere"], "`--save`: there is no folder nowhere"),
        (["--algo", "sac"], "cannot train sac on 'CartPole-v1' .*The algorithm only supports"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DQN, "learn", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=f"(?s)benchmark: .*{message}"):
        benchmark(["compression", "--algo", "dqn", "--env", "CartPole-v1", "-n", "2000", "-o", "a.csv", *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--sparsity", "1"], ["--seeds", "0"], ["--params", "x"], ["--episodes", "-1"]])
def test_mistakes_of_the_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark(["compression", *TINY, "-o", "a.csv", *arguments])
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_file_of_something_else_stops_it_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(DQN, "learn", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="has the columns a, b"):
        benchmark(["compression", *TINY, *PARAMS, "-o", str(tmp_path / "a.csv")])
    assert (tmp_path / "a.csv").read_text() == "a,b\n1,2\n"


# --- The figure ---


@given(st.floats(0, 0.999), st.floats(0, 0.999))
def test_the_axis_goes_on_for_ever_towards_100_percent(first, second):
    assert (position(first) < position(second)) == (first < second) or math.isclose(first, second, abs_tol=1e-12)
    assert (position(0.0), position(0.9), position(0.99)) == (0, pytest.approx(1), pytest.approx(2))


def agents(environment="CartPole-v1", seeds=2, sparsities=(0.5, 0.9, 0.99), **kwargs):
    for seed in range(seeds):
        for sparsity in (0.0, *sparsities):
            for bits in (32, 8):
                variant = VARIANTS[2 * (bits == 8) + (sparsity > 0)]
                value = 100 - 50 * sparsity**20 + seed
                yield make_result(
                    environment=environment,
                    variant=variant,
                    bits=bits,
                    seed=seed,
                    sparsity=sparsity,
                    mean_return=value,
                    **kwargs,
                )


def test_plot_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    add_results(tmp_path / "a.csv", agents())
    add_results(tmp_path / "b.csv", [*agents("Pendulum-v1", seeds=1), *agents(seeds=3, steps=2000, parameters="gamma=0.9")])
    command = ["plot", "compression", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "-o"]
    main([*command, str(tmp_path / "figure.svg")])
    assert capsys.readouterr().out.split() == [
        *("written", "to", str(tmp_path / "figure.png")),
        *("written", "to", str(tmp_path / "figure.svg")),
    ]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figure.svg").read_bytes()
    texts = [text.strip() for element in ET.fromstring(svg).iter() if (text := element.text) and text.strip()]
    for label in ("dense, fp32", "quantized", "pruned", "pruned + quantized"):
        assert texts.count(label) == 1  # one legend for all panels
    assert texts.count("400x") == texts.count("40x") == texts.count("99") == 3
    assert texts.count("50") == 6  # a sparsity and a return, in each of the three panels
    assert {"DQN, CartPole-v1", "DQN, Pendulum-v1"} <= set(texts)
    assert "1,000 steps + 20 % quantized, 2 seeds x 20 episodes" in texts
    assert "1,000 steps + 20 % quantized, 1 seed x 20 episodes" in texts
    assert "DQN, CartPole-v1, gamma 0.9" in texts
    # The same results give the same file
    main([*command, str(tmp_path / "again")])
    assert (tmp_path / "again.svg").read_bytes() == svg


def test_table(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = [replace(result, packed_bytes=115 + 10 * result.seed) for result in agents(seeds=2, sparsities=(0.9,))]
    add_results(tmp_path / "a.csv", [*results, *agents("Pendulum-v1", seeds=1, sparsities=())])
    main(["plot", "compression", str(tmp_path / "a.csv"), "-o", str(tmp_path / "figure"), "--table"])
    first, second = capsys.readouterr().out.split("\n\n", 1)[1].split("DQN, Pendulum-v1")
    assert first.startswith("DQN, CartPole-v1, 1,000 steps + 20 % quantized, 2 seeds x 20 episodes\n")
    value = 100.5 - 50 * 0.9**20
    # Student's t with one degree of freedom: 12.706 * 0.5
    assert [line for line in first.splitlines() if line.startswith("| pruned")] == [
        f"| {name} | 90 % | 10.0x | 8.3x | 120 | {value:.1f} | {value - 6.353:.1f} to {value + 6.353:.1f} | 2 (few) |"
        for name in ("pruned", "pruned + quantized")
    ]
    assert [line.split(" | ")[0] for line in second.splitlines()[4:]] == ["| dense", "| quantized"]
    assert "| - | 1 (few) |" in second


def test_means_and_intervals_are_where_they_belong():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from sb3_sparse.benchmark.plots import _draw

    axes = Figure().subplots()
    _draw(axes, list(agents(seeds=3)))
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["dense, fp32"].get_ydata()) == list(lines["quantized"].get_ydata()) == [101, 101]
    containers = {container.get_label(): container for container in axes.containers}
    for label in ("pruned", "pruned + quantized"):
        line = containers[label].lines[0]
        assert line.get_ydata() == pytest.approx([101 - 50 * s**20 for s in (0.5, 0.9, 0.99)])
        assert line.get_xdata() == pytest.approx([position(s) for s in (0.5, 0.9, 0.99)], abs=0.02)
    # The four are told apart by more than colour
    assert containers["pruned"].lines[0].get_marker() != containers["pruned + quantized"].lines[0].get_marker()
    assert lines["dense, fp32"].get_linestyle() != lines["quantized"].get_linestyle()


@pytest.mark.parametrize("kept", VARIANTS)
def test_a_figure_of_what_there_is(kept, tmp_path):
    """An experiment that is still under way has few variants, and fewer seeds of some."""
    pytest.importorskip("matplotlib")
    results = [result for result in agents() if result.variant == kept]
    add_results(tmp_path / "a.csv", results[:-1])
    png, svg = plot_compression([tmp_path / "a.csv"], tmp_path / "figure")
    assert png.stat().st_size > 1000
    n_seeds = "1-2 seeds" if len(results) > 2 else "1 seed"
    assert f", {n_seeds} x 20 episodes" in svg.read_text()


def test_close_sparsities_do_not_write_over_each_other(tmp_path):
    pytest.importorskip("matplotlib")
    sparsities = [0.5, 0.9, 0.905, 0.91, 0.95, 0.951, 0.99]
    add_results(tmp_path / "a.csv", agents(sparsities=sparsities))
    _, svg = plot_compression([tmp_path / "a.csv"], tmp_path / "figure")
    texts = {element.text.strip() for element in ET.parse(svg).iter() if element.text}
    # The numbers of the lower axis, which no return has
    assert {"8x", "44x", "82x", "400x"} <= texts
    assert not {"40x", "42x", "80x"} & texts


@pytest.mark.parametrize(
    ("files", "output", "message"),
    [
        (["nowhere.csv"], "figure", "there is no file nowhere.csv"),
        (["a.csv"], "nowhere/figure", "`--output` nowhere/figure: there is no folder nowhere"),
        (["a.csv", "a.csv"], "figure", "an agent is in more than one of the files a.csv, a.csv"),
        (["empty.csv"], "figure", "there is nothing to show: empty.csv have no rows"),
    ],
)
def test_bad_plots(files, output, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_results("a.csv", agents())
    add_results("empty.csv", [])
    with pytest.raises(SystemExit, match=f"sb3-sparse: {message}"):
        main(["plot", "compression", *files, "-o", output])
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "empty.csv"}


def test_without_matplotlib(tmp_path, monkeypatch):
    add_results(tmp_path / "a.csv", agents())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"sb3-sparse: figures need matplotlib .*pip install 'sb3-sparse\[plots\]'"):
        main(["plot", "compression", str(tmp_path / "a.csv"), "-o", str(tmp_path / "figure")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_names_of_figures():
    assert figure_files("docs") == {"png": Path("docs.png"), "svg": Path("docs.svg")}
    assert figure_files("v1.2")["png"] == Path("v1.2.png")
    assert figure_files("a.svg")["png"] == Path("a.png")
