"""
Random configurations, legal and illegal: they train, save, load and go on with every invariant, or they are refused with an
error that names the argument, before anything is trained. Nothing else happens.
"""

import inspect
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse import (
    SET,
    DelayedNStep,
    DynamicNStepReplayBuffer,
    DynamicReplayCapacity,
    GradualPruning,
    MaskRefresh,
    QuantizationAware,
    RigL,
    SparsityLogger,
    sparsity_report,
)
from sb3_sparse.masks.config import SparsityConfig
from tests.helpers import ALGORITHMS, DISCRETE, ON_POLICY, RandomEnv, assert_invariants, make_model, save_and_load

N_STEPS = 50
VECTOR = spaces.Box(-1, 1, (7,), np.float32)
#: Of twenty values of an argument one is illegal.
ILLEGAL = 20


class Value(NamedTuple):
    """A value of an argument, and whether it can be right at all."""

    value: Any
    legal: bool = True


def either(legal, illegal):
    """Mostly a legal value."""
    return st.integers(1, ILLEGAL).flatmap(
        lambda number: illegal.map(lambda value: Value(value, False)) if number == ILLEGAL else legal.map(Value)
    )


def choice(*values):
    return st.sampled_from(values)


NO_NUMBERS = choice("0.5", True, [0.5], float("nan"), float("inf"), {})
NO_COUNTS = choice(0, -1, 2.0, "2", True, None, float("nan"))
NETWORKS = {DQN: ["q_net"], QRDQN: ["quantile_net"]}
#: Layers that most policies have none of; ``"*"`` are all.
LAYERS = choice("first", "first", "last", "last", "*.0", "*.0", "*", "actor.mu.0", "critic.qf*.0")
WIDTHS = st.lists(choice(1, 2, 3, 5, 8, 13, 16, 24), max_size=3)


def fractions(low=0.0, high=0.99):
    return st.floats(low, high).map(lambda value: round(value, 3))


# --- policy_kwargs ---


def names_of(algorithm):
    """Names of networks, nearly always of those that the algorithm has."""
    names = NETWORKS.get(algorithm, ["actor", "critic"])
    return choice(*names * 6, "actor", "q_net", "features_extractor")


def distributions():
    return either(
        choice(None, "uniform", "er", "erk", {"er_epsilon": [4, 8]}, {"er_epsilon": {"*.0": 5}}, {"*.0": 0.5}, {"*": 0.7}),
        choice("ERK", 3, [], {}, {"er_epsilon": []}, {"er_epsilon": [0]}, {"*.0": 1.0}, {"nothing": 0.5}, {3: 0.5}),
    )


def dense_layers():
    return either(
        choice((), [], "last", "first") | st.lists(LAYERS, max_size=2),
        choice("nothing", ["actor.mu.99"], 3, [3], None, {"first": 1}),
    )


def sparse_arguments(algorithm):
    """The sparse ``policy_kwargs``."""
    return {
        "sparsity": either(
            fractions() | choice(None, np.float32(0.5), 0) | st.dictionaries(names_of(algorithm), fractions(), max_size=2),
            NO_NUMBERS.filter(lambda value: value != {}) | choice(1, 1.0, -0.1, {"actor": 1.0}, {"nobody": 0.5}, {3: 0.5}),
        ),
        "distribution": distributions(),
        "pattern": either(
            choice("unstructured", "1:4", "2:4", "2:4", "4:8", "block:2x2", "block:1x4", "block:4x1"),
            choice("2:", "4:2", "0:4", "block:0x2", "block", 24, None, ["2:4"], "2 : 4x"),
        ),
        "dense_layers": dense_layers(),
        "initial_mask": either(choice("random", "magnitude"), choice("zeros", None, 3, ["random"])),
        "mask_seed": either(choice(None, 0, 7, 2**63 - 1, np.int64(3)), choice(-1, 2**63, 1.0, "7", True)),
        "engine": either(choice("auto", "torch", "native"), choice("fast", None, True, 0)),
    }


OPTIMIZERS = choice(
    th.optim.Adam,
    th.optim.AdamW,
    th.optim.SGD,
    th.optim.RMSprop,
    th.optim.Adagrad,
    th.optim.Adamax,
    th.optim.NAdam,
    RMSpropTFLike,
)


def stock_arguments(algorithm, kind):
    """Arguments of the stock policies, those that this algorithm's policy has."""
    second = "vf" if algorithm in ON_POLICY else "qf"
    q_networks = algorithm in (DQN, QRDQN)
    maps = st.fixed_dictionaries({"pi": WIDTHS, second: WIDTHS}) if not q_networks else st.nothing()
    wrong = choice([0], [-4], [4.0], ["8"], 16, "16", [[8]], [None], [True])
    arguments = {
        "net_arch": either(
            WIDTHS | maps, wrong if q_networks else wrong | choice({"pi": [8], second: [0]}, {"pi": 8, second: 8})
        ),
        "activation_fn": either(choice(th.nn.ReLU, th.nn.Tanh, th.nn.ELU, th.nn.GELU), choice("relu", None, 3, th.nn.ReLU())),
        "optimizer_class": either(
            OPTIMIZERS, choice("Adam", None, th.optim.LBFGS, th.optim.SparseAdam, th.nn.Linear, th.optim.Optimizer)
        ),
        "optimizer_kwargs": either(
            choice(None, {}, {"weight_decay": 0.01}), choice({"nonsense": 1}, {"weight_decay": -1.0}, [1], "fast")
        ),
    }
    if not q_networks:
        arguments["share_features_extractor"] = choice(True, False).map(Value)
    if algorithm not in ON_POLICY and not q_networks and algorithm is not DDPG:
        arguments["n_critics"] = either(choice(1, 2, 3), choice(0, -1, 1.5, "2", None))
    if algorithm in (TQC, QRDQN):
        arguments["n_quantiles"] = either(choice(1, 5), choice(0, -1, 1.5, "2", None))
    if algorithm is RecurrentPPO:
        arguments["lstm_hidden_size"] = either(choice(1, 8), choice(0, -1, 1.5, "2", None))
        arguments["n_lstm_layers"] = either(choice(1, 2), choice(0, -1, 1.5, "2", None))
        arguments["enable_critic_lstm"] = choice(True, False).map(Value)
    if algorithm in (PPO, A2C):
        arguments["ortho_init"] = choice(True, False).map(Value)
    if algorithm in (PPO, A2C, SAC):
        arguments["log_std_init"] = either(fractions(-3, 1), choice("0", None, float("nan"), [0.0]))
    if kind == "Mlp":
        arguments["features_extractor_class"] = either(
            choice(FlattenExtractor), choice("FlattenExtractor", CombinedExtractor, 3, False, FlattenExtractor(VECTOR))
        )
    return {name: values for name, values in arguments.items() if not values.is_empty}


@st.composite
def some_of(draw, arguments, min_size=0, max_size=4):
    """A few of the arguments, each with a value."""
    names = draw(st.lists(choice(*sorted(arguments)), unique=True, min_size=min_size, max_size=max_size))
    return {name: draw(arguments[name]) for name in names}


# --- Callbacks ---

MOMENTS = either(choice(None, 0, 10, 25, 30) | fractions(0, 0.6), choice(-1, 1.5, "0.5", float("nan"), True, [0.1]))
ENDS = either(choice(None, 45, 60) | fractions(0.65, 1.0), choice(-1, 1.5, "0.5", float("nan"), True, [0.1]))
COMMON = {
    "on_nonfinite": either(choice("raise", "ignore"), choice("stop", None, 0)),
}
DROP_AND_GROW = {
    "drop_schedule": either(choice(None, "constant", "cosine", "linear"), choice("step", 3)),
    "start": MOMENTS,
    "stop": ENDS,
    "grown": either(choice("zero", "init"), choice("ones", None, 0)),
    "sign_split": either(choice(False, True, "half", "proportional"), choice("both", 2, None)),
    "moments": either(choice("reset", "keep"), choice("restart", None)),
    "target": either(choice("online", "own_topk"), choice("topk", None)),
    "last_event": either(choice("none", "prune_only"), choice("all", None)),
    "skip_step": either(choice(True, False), choice("no", None)),
    "unit": either(choice("steps", "timesteps"), choice("episodes", None)),
    **COMMON,
}
COUNTS = either(st.integers(1, 12), NO_COUNTS)
DROPS = {"every": COUNTS, "drop_fraction": either(fractions(0.01, 0.99), NO_NUMBERS | choice(0, 1, -0.3, None))}
#: Callback: what it must be given, and what it may be.
CALLBACKS: dict[type, tuple[dict, dict]] = {
    SET: (DROPS, DROP_AND_GROW),
    RigL: (DROPS, DROP_AND_GROW),
    MaskRefresh: (
        {"every": COUNTS},
        {
            "rule": either(choice("masked_grad", "ste", "sr_ste"), choice("STE", None, 3)),
            "decay": either(choice(2e-4, 0.1, 0.0), choice(-1.0, "0.1", float("nan"), None)),
            "start": MOMENTS,
            "stop": ENDS,
            **COMMON,
        },
    ),
    GradualPruning: (
        {
            "final_sparsity": either(
                fractions(0.5, 0.99) | choice(None),
                NO_NUMBERS | choice(1.0, -0.5, {"nobody": 0.5}, {"actor": 2}),
            )
        },
        {
            "start": either(choice(0, 10, 25) | fractions(0, 0.5), choice(None, -1, 1.5, "0.5", float("nan"))),
            "stop": either(choice(40, 60) | fractions(0.6, 1.0), choice(None, -1, 1.5, "0.5", float("nan"))),
            "updates": COUNTS,
            "scope": either(choice("layer", "global"), choice("network", None)),
            "distribution": distributions(),
            **COMMON,
        },
    ),
    QuantizationAware: (
        {},
        {
            "bits": either(st.integers(2, 8), choice(1, 9, 8.0, "8", None, True)),
            "activation_bits": either(st.integers(2, 8), choice(1, 9, 8.0, "8", None)),
            "input_bits": either(choice(2, 8, 16, "float"), choice(1, 9, 32, "int", None)),
            "start": either(choice(0, 20, 45) | fractions(0, 1), choice(None, -1, 1.5, "0.5", float("nan"))),
            "exempt_layers": dense_layers(),
            "averaging": either(fractions(0.01, 0.99), NO_NUMBERS | choice(0, 1, None)),
            "freeze_after": either(choice(None, 1, 5), choice(0, -1, 2.0, "2")),
        },
    ),
    SparsityLogger: ({}, {}),
    DelayedNStep: ({}, {"n_steps": COUNTS, "delay": either(choice(0, 20, 1000), choice(-1, 2.0, "2", None, True))}),
    DynamicReplayCapacity: (
        {"min_size": either(choice(10, 40), NO_COUNTS), "every": either(choice(5, 10), NO_COUNTS)},
        {
            "rule": either(choice("code", "paper"), choice("fifo", None)),
            "threshold": either(choice(0.01, 0.2, 5), NO_NUMBERS | choice(0, -1, None)),
            "n_oldest": either(choice(1, 8), NO_COUNTS),
            "drop_fraction": either(fractions(0.01, 0.99), NO_NUMBERS | choice(0, 1)),
            "max_size": either(choice(None, 50, 200), choice(0, -1, 2.0, "2")),
        },
    ),
}


@st.composite
def callbacks(draw, algorithm, pattern):
    off_policy, n_of_m = algorithm not in ON_POLICY, isinstance(pattern, str) and pattern[:1].isdigit()
    fits = {MaskRefresh: n_of_m, DelayedNStep: off_policy, DynamicReplayCapacity: off_policy}
    fitting = [kind for kind in CALLBACKS if fits.get(kind, True)]
    names = names_of(algorithm)
    networks = either(
        choice(None) | names | st.lists(names, min_size=1, max_size=2, unique=True),
        choice("nobody", 3, [], [3], {"actor": 1}, ""),
    )
    chosen = []
    for kind in draw(st.lists(choice(*fitting * 3, *CALLBACKS), max_size=3)):
        needed, optional = CALLBACKS[kind]
        if "networks" in inspect.signature(kind).parameters:
            optional = {**optional, "networks": networks}
        given = {name: draw(values) for name, values in needed.items()}
        chosen.append((kind, {**given, **draw(some_of(optional))} if optional else given))
    return chosen


# --- Experiments ---


class Experiment(NamedTuple):
    """Everything that is random."""

    algorithm: Any
    kind: str
    sparse: dict
    stock: dict
    callbacks: list
    n_envs: int
    dynamic_buffer: bool

    @property
    def is_legal(self):
        given = [*self.sparse.values(), *self.stock.values(), *(one for _, some in self.callbacks for one in some.values())]
        return all(value.legal for value in given)

    @property
    def arguments(self):
        """Names that an error may say: those of the arguments, of the callbacks and theirs, of an optimizer's options."""
        names = {*SparsityConfig.argument_names(), *self.stock, "replay_buffer_class", "optimize_memory_usage"}
        for kind, _ in self.callbacks:
            names |= {kind.__name__, *inspect.signature(kind).parameters}
        options = self.stock.get("optimizer_kwargs", Value(None)).value
        return names | (set(options) if isinstance(options, dict) else set())


@st.composite
def experiments(draw):
    algorithm = draw(choice(*ALGORITHMS))
    kinds = ["Mlp"] if algorithm is CrossQ else ["Mlp"] * 8 + ["Cnn", "MultiInput"]
    kind = draw(choice(*kinds))
    sparse = draw(some_of(sparse_arguments(algorithm)))
    return Experiment(
        algorithm,
        kind,
        sparse,
        draw(some_of(stock_arguments(algorithm, kind), max_size=3)),
        draw(callbacks(algorithm, sparse.get("pattern", Value("unstructured")).value)),
        draw(choice(1, 1, 2)),
        draw(choice(True, True, False)),
    )


def values_of(arguments: Mapping[str, Value]):
    return {name: value.value for name, value in arguments.items()}


def make(experiment):
    """Model and callbacks; the steps there are not yet any of."""
    kwargs = {**values_of(experiment.sparse), **values_of(experiment.stock)}
    if experiment.n_envs > 1:
        env: Any = DummyVecEnv([lambda: RandomEnv(experiment.kind, experiment.algorithm in DISCRETE)] * experiment.n_envs)
    else:
        env = RandomEnv(experiment.kind, experiment.algorithm in DISCRETE)
    buffer = {}
    wants_buffer = any(kind in (DelayedNStep, DynamicReplayCapacity) for kind, _ in experiment.callbacks)
    if (
        wants_buffer
        and experiment.dynamic_buffer
        and experiment.algorithm not in ON_POLICY
        and experiment.kind != "MultiInput"
    ):
        buffer = dict(replay_buffer_class=DynamicNStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=1, gamma=0.99))
    return make_model(experiment.algorithm, experiment.kind, env=env, policy_kwargs=kwargs, **buffer)


def make_callbacks(experiment):
    return [kind(**values_of(arguments)) for kind, arguments in experiment.callbacks]


def names_an_argument(error, names):
    return any(re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", str(error)) for name in names)


def check(experiment: Experiment) -> bool:
    """Whether the experiment was carried out; otherwise it was refused as it should be."""
    model = None
    with warnings.catch_warnings():
        # What stays dense is said; torch and Stable-Baselines3 have more to say
        warnings.simplefilter("ignore")
        try:
            made = make_callbacks(experiment)
            model = make(experiment)
            model.learn(N_STEPS, callback=made)
        except (ValueError, TypeError) as error:
            assert names_an_argument(error, experiment.arguments), f"it names no argument: {error}"
            assert type(error) in (ValueError, TypeError), type(error)
            assert model is None or model.num_timesteps == 0, f"in mid-training: {error}"
            if model is not None:
                assert_invariants(model)
            return False
        assert experiment.is_legal, "an illegal value was taken"
        assert model.num_timesteps >= N_STEPS
        assert_invariants(model)
        for parameter in model.policy.parameters():
            assert bool(th.isfinite(parameter).all())
        assert str(sparsity_report(model))
        with TemporaryDirectory() as folder:
            loaded = save_and_load(model, Path(folder))
        try:
            loaded.learn(30, callback=make_callbacks(experiment), reset_num_timesteps=False)
        except (ValueError, TypeError) as error:
            # What was right for the first training may not be for one that goes on, e.g. a beginning that has passed
            assert names_an_argument(error, experiment.arguments), f"it names no argument: {error}"
            assert loaded.num_timesteps == model.num_timesteps, f"in mid-training: {error}"
            loaded.learn(30, reset_num_timesteps=False)
        assert_invariants(loaded)
    return True


RARELY = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=12, suppress_health_check=RARELY)
@given(experiments())
def test_random_experiments(experiment):
    check(experiment)


@pytest.mark.expensive
@settings(max_examples=500, suppress_health_check=RARELY)
@given(experiments())
def test_many_random_experiments(experiment):
    check(experiment)
