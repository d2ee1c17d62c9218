"""
What may be searched, by name, and the one function that samples it: :func:`sample` turns a trial and a configuration into the
configuration that the trial trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.callbacks.mask_refresh import RULES, MaskRefresh
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.masks.schedules import SCHEDULES
from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.merge import algorithm_of
from sb3_sparse.tuning.parameters import Parameter
from sb3_sparse.tuning.stock import sample_stock, stock_algorithms

_N_M = "the pattern is N:M"
_NOT_N_M = "the pattern is not N:M"
_UPDATES = "the updater is not static"

# Ranges hold what has been published, with room on both sides. Sparsities: RLx2 up to 0.99; Graesser et al. (ICML 2022): drop
# fractions of 0 to 0.5, an update every 100 to 5000 steps of a million; RLx2: 3 steps, one tenth of the training later; Ivanov
# et al. (2025): pruned from 0.2 to 0.8 of the training, 8 bits in its last sixth; Kresse and Lampert (2025): down to 2 bits.
DENSITY = Parameter(
    "density_{network}", "fraction of the network's weights that exist, 1 - sparsity", _NOT_N_M, low=0.01, high=0.9, log=True
)
DISTRIBUTION = Parameter(
    "distribution",
    "how the sparsity is spread over layers; without convolutions ER and ERK are the same",
    f"{_NOT_N_M}, no convolutions",
    choices=("uniform", "erk"),
)
DISTRIBUTION_CNN = Parameter(
    "distribution_cnn", DISTRIBUTION.meaning, f"{_NOT_N_M}, convolutions", choices=("uniform", "er", "erk")
)
PATTERN = Parameter("pattern", "which masks are legal", choices=("unstructured", "block:4x1", "2:4", "1:4", "1:8"))
_UPDATER_CLASSES = {"static": None, "set": SET, "rigl": RigL, "mask_refresh": MaskRefresh}
UPDATER = Parameter("updater", "how masks change", _NOT_N_M, choices=("static", "set", "rigl"))
UPDATER_N_M = Parameter("updater_n_m", "how masks change", _N_M, choices=tuple(_UPDATER_CLASSES))
REFRESH_RULE = Parameter("mask_refresh_rule", "what becomes of pruned weights", "the updater is mask_refresh", choices=RULES)
CADENCE = Parameter("mask_updates", "mask updates in the whole training", _UPDATES, low=10, high=1000, log=True)
DROP_FRACTION = Parameter("drop_fraction", "fraction of the weights dropped at an update", "SET, RigL", low=0.05, high=0.6)
DROP_SCHEDULE = Parameter("drop_schedule", "how the fraction falls", "SET, RigL", choices=tuple(SCHEDULES))
N_STEP = Parameter("n_step", "steps of the targets after the delay", low=1, high=5)
N_STEP_DELAY = Parameter("n_step_delay", "fraction of the gradient steps with 1-step targets", "n_step > 1", low=0.0, high=0.5)
N_STEP_ENTROPY = Parameter(
    "n_step_entropy",
    "where targets hold the entropy bonus",
    "n_step > 1; SAC, TQC, CrossQ",
    choices=("bootstrap", "every_step"),
)
PRUNING_BEGIN = Parameter("pruning_begin", "first pruning, as a fraction of the training", low=0.0, high=0.4)
PRUNING_LENGTH = Parameter("pruning_length", "from first to last pruning, as a fraction of the training", low=0.1, high=0.6)
PRUNING_UPDATES = Parameter("pruning_updates", "number of prunings", low=1, high=300, log=True)
PRUNING_SCOPE = Parameter(
    "pruning_scope",
    "across what magnitudes are compared",
    f"{_NOT_N_M}, pruning has no distribution of its own, distribution is not searched",
    choices=("layer", "global"),
)
BITS = Parameter("quantization_bits", "bits of a weight", low=2, high=8)
ACTIVATION_BITS = Parameter("quantization_activation_bits", "bits of the inputs of layers", low=3, high=8)
INPUT_BITS = Parameter("quantization_input_bits", "bits of the observation", choices=(8, "float"))
QUANTIZATION_BEGIN = Parameter("quantization_begin", "begin, as a fraction of the training", low=0.5, high=0.95)

_ENTROPY = ("sac", "tqc", "crossq")


@dataclass(frozen=True)
class Search:
    """
    A named part of what may be searched.

    :param name: Its name.
    :param description: What it changes, in one line.
    :param parameters: What a trial suggests.
    :param apply: Lets a trial suggest and changes the draft; the names of all searches are its third argument.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    apply: Callable[[Any, Draft, Sequence[str]], None]


def _stock(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    sample_stock(trial, draft)


def _pattern(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    draft.set_pattern(PATTERN.suggest(trial))


def _sparsity(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    if draft.pattern.fixed_sparsity is None:
        # Rounded for the eye: one weight in a million is less than any layer can tell
        draft.set_sparsity({network: round(1 - DENSITY.suggest(trial, network=network), 6) for network in draft.networks})


def _distribution(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    if draft.pattern.fixed_sparsity is None:
        draft.set_distribution((DISTRIBUTION_CNN if draft.has_convolutions else DISTRIBUTION).suggest(trial))


def _pruning(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    begin = PRUNING_BEGIN.suggest(trial)
    arguments = {
        "start": begin,
        "stop": min(begin + PRUNING_LENGTH.suggest(trial), 1.0),
        "updates": PRUNING_UPDATES.suggest(trial),
    }
    has_distribution = draft.explicit_distribution is not None or (draft.pruning or {}).get("distribution") is not None
    if draft.pattern.fixed_sparsity is None and not has_distribution and "distribution" not in names:
        arguments["scope"] = PRUNING_SCOPE.suggest(trial)
    draft.set_pruning(**arguments)


def _updater(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    choice = (UPDATER if draft.pattern.fixed_sparsity is None else UPDATER_N_M).suggest(trial)
    rule = {"rule": REFRESH_RULE.suggest(trial)} if choice == "mask_refresh" else {}
    draft.set_updater(_UPDATER_CLASSES[choice], **rule)


def _cadence(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    if updaters := draft.updaters:
        cadence = draft.cadence(CADENCE.suggest(trial))
        for _, kwargs in updaters:
            kwargs.update(cadence)


def _drop_fraction(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    if updaters := draft.callbacks.of(SET, RigL):
        drop = {"drop_fraction": DROP_FRACTION.suggest(trial), "drop_schedule": DROP_SCHEDULE.suggest(trial)}
        for _, kwargs in updaters:
            kwargs.update(drop)


def _n_step(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    n_steps, delay, further = N_STEP.suggest(trial), 0.0, {}
    if n_steps > 1:
        delay = N_STEP_DELAY.suggest(trial)
        if draft.algo in _ENTROPY:
            further = {"entropy": N_STEP_ENTROPY.suggest(trial)}
    draft.set_n_step(n_steps, delay, **further)


def _quantization(trial: Any, draft: Draft, names: Sequence[str]) -> None:
    draft.set_quantization(
        bits=BITS.suggest(trial),
        activation_bits=ACTIVATION_BITS.suggest(trial),
        input_bits=INPUT_BITS.suggest(trial),
        start=QUANTIZATION_BEGIN.suggest(trial),
    )


#: Every search, in the order in which they are sampled.
SEARCHES: dict[str, Search] = {
    search.name: search
    for search in (
        Search("stock", "what rl-zoo3 itself searches for the algorithm, by its own sampler", (), _stock),
        Search("pattern", "unstructured, blocks, or N:M, which says how sparse all networks are", (PATTERN,), _pattern),
        Search(
            "sparsity",
            "how sparse each network is; with gradual pruning, in the end",
            (DENSITY,),
            _sparsity,
        ),
        Search("distribution", "how sparsity is spread over layers", (DISTRIBUTION, DISTRIBUTION_CNN), _distribution),
        Search(
            "pruning",
            "the schedule of gradual pruning; where to is what the configuration or `sparsity` says",
            (PRUNING_BEGIN, PRUNING_LENGTH, PRUNING_UPDATES, PRUNING_SCOPE),
            _pruning,
        ),
        Search(
            "updater", "how masks change: one updater for all sparse networks", (UPDATER, UPDATER_N_M, REFRESH_RULE), _updater
        ),
        Search("cadence", "how often masks change", (CADENCE,), _cadence),
        Search("drop_fraction", "how much SET and RigL drop and grow", (DROP_FRACTION, DROP_SCHEDULE), _drop_fraction),
        Search("n_step", "multi-step targets after a delay", (N_STEP, N_STEP_DELAY, N_STEP_ENTROPY), _n_step),
        Search(
            "quantization",
            "weights and activations in few bits, and when that begins",
            (BITS, ACTIVATION_BITS, INPUT_BITS, QUANTIZATION_BEGIN),
            _quantization,
        ),
    )
}


def known_searches(names: str | Sequence[str]) -> list[str]:
    """
    Check names of searches.

    :param names: Names of searches, or one string of names with commas between them.
    :return: The names, in the order in which they are sampled.
    :raises ValueError: For unknown names, listing the real ones, and for none at all.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in SEARCHES:
            raise ValueError(f"`search` names the unknown {name!r}; the searches are: {', '.join(SEARCHES)}")
    if not wanted:
        raise ValueError(f"`search` names nothing to search; the searches are: {', '.join(SEARCHES)}")
    return [name for name in SEARCHES if name in wanted]


def check_searches(names: str | Sequence[str], algo: str) -> list[str]:
    """
    Refuse what cannot be searched, or not together.

    :param names: Names of searches, or one string of names with commas between them.
    :param algo: rl-zoo3's name of the algorithm.
    :return: The names, in the order in which they are sampled.
    :raises ValueError: As :func:`known_searches`, for an algorithm that a search does not work with, and for searches that
        contradict each other.
    """
    wanted = known_searches(names)
    algorithm = algorithm_of(algo)
    if "stock" in wanted and algo not in stock_algorithms():
        raise ValueError(f"`search` names 'stock', but rl-zoo3 has no sampler for {algo}: leave it out")
    if "updater" in wanted and "pruning" in wanted:
        raise ValueError(
            "`search` names both 'updater' and 'pruning', and a network has one updater: gradual pruning lets weights go that "
            "never return. Choose one of them"
        )
    if "n_step" in wanted and issubclass(algorithm, OnPolicyAlgorithm):
        raise ValueError(f"`search` names 'n_step', which needs a replay buffer; {algo} has none")
    if "quantization" in wanted and algo == "ppo_lstm":
        raise ValueError("`search` names 'quantization', but ppo_lstm's LSTM cannot be quantized")
    return wanted


def check_configuration(names: Sequence[str], algo: str, hyperparameters: Mapping[str, Any]) -> None:
    """
    Refuse searches that a configuration has no place for.

    :param names: What :func:`check_searches` gave.
    :param algo: rl-zoo3's name of the algorithm.
    :param hyperparameters: One environment's section of a configuration.
    :raises ValueError: Saying which search and what of the configuration contradict each other.
    """
    draft = Draft(hyperparameters, algo)
    if list(names) != ["stock"]:
        draft.make_sparse()
    updaters = " and ".join(callback.__name__ for callback, _ in draft.updaters)
    fixed = draft.pattern.fixed_sparsity is not None and "pattern" not in names
    explicit = draft.explicit_distribution is not None and "sparsity" not in names
    says_nothing = draft.is_dense and "sparsity" not in names
    still_dense = says_nothing and not fixed and "pattern" not in names
    buffers = (None, ReplayBuffer, NStepReplayBuffer, DynamicNStepReplayBuffer)
    rules = [
        ("sparsity", fixed, f"`pattern`={draft.pattern.spec!r} says how sparse its networks are: search 'pattern' as well"),
        (
            "distribution",
            fixed,
            f"`pattern`={draft.pattern.spec!r} gives every layer the same sparsity: search 'pattern' as well",
        ),
        ("distribution", explicit, "its `distribution` says how sparse each layer is: search 'sparsity' as well"),
        ("distribution", still_dense, "nothing of it is sparse: search 'sparsity' as well"),
        ("pattern", explicit, "its `distribution` says how sparse each layer is: search 'sparsity' as well"),
        (
            "pattern",
            says_nothing and draft.pattern.fixed_sparsity is None,
            "nothing of it is sparse, and unstructured masks and blocks do not say how sparse: search 'sparsity' as well",
        ),
        (
            "pattern",
            "MaskRefresh" in updaters and "updater" not in names,
            "its MaskRefresh works with N:M alone: search 'updater' as well",
        ),
        ("updater", draft.pruning is not None, "it prunes gradually, and a network has one updater: leave it out"),
        ("updater", still_dense, "nothing of it is sparse: search 'sparsity' as well"),
        ("pruning", bool(updaters), f"it has {updaters}, and a network has one updater: take a configuration without"),
        ("pruning", still_dense, "nothing says how sparse its networks become: search 'sparsity' as well"),
        ("cadence", not updaters and "updater" not in names, "it has no updater: search 'updater' as well"),
        (
            "drop_fraction",
            not draft.callbacks.of(SET, RigL) and "updater" not in names,
            "it has neither SET nor RigL: search 'updater' as well",
        ),
        ("n_step", "MultiInput" in draft.policy.__name__, "its observations are dicts, for which there are no such targets"),
        (
            "n_step",
            draft.replay_buffer not in buffers,
            f"its replay buffer is {draft.replay_buffer}, not made for such targets",
        ),
        (
            "n_step",
            bool(draft.values.get("optimize_memory_usage")),
            "such targets need the observations that `optimize_memory_usage` leaves out: set it to False",
        ),
    ]
    for name, is_wrong, reason in rules:
        if name in names and is_wrong:
            raise ValueError(f"`search` names {name!r}, but the configuration does not allow it: {reason}")
    draft.n_timesteps  # noqa: B018  # raises if there are none


def count_inputs(observation_space: spaces.Space) -> int | None:
    """
    Count the inputs of first layers.

    :param observation_space: Observation space of an environment.
    :return: The ``n_inputs`` that :func:`sample` wants to know: the size of an observation; None for dicts.
    """
    return None if isinstance(observation_space, spaces.Dict) else spaces.flatdim(observation_space)


def sample(
    trial: Any,
    names: str | Sequence[str],
    algo: str,
    hyperparameters: Mapping[str, Any],
    *,
    n_inputs: int | None = None,
) -> dict[str, Any]:
    """
    The configuration that a trial trains: a given one with the sampled values merged in. Only a search changes something, and
    only what it is about: other ``policy_kwargs`` and callbacks stay, and so do the arguments of a callback that a search does
    not sample.

    The same values of ``trial.params`` give the same configuration, so ``optuna.trial.FixedTrial(params)`` repeats a trial.

    :param trial: An Optuna trial.
    :param names: What to search, see :func:`check_searches`.
    :param algo: rl-zoo3's name of the algorithm.
    :param hyperparameters: One environment's section of an rl-zoo3 configuration, as loaded. Not changed.
    :param n_inputs: Number of inputs of the policy's first layers, see :func:`count_inputs`. None if it is not known: first
        layers are left dense in N:M patterns then, as they are where a row has fewer than M inputs.
    :return: A new section; plain ``rl_zoo3.train -conf`` trains it. No entry of the given one is missing in it, so that it
        may be merged over that. Its ``policy`` is named by a dotted path.
    :raises ValueError: As :func:`check_searches` and :func:`check_configuration`.
    """
    names = check_searches(names, algo)
    check_configuration(names, algo, hyperparameters)
    draft = Draft(hyperparameters, algo, n_inputs)
    if names != ["stock"] or draft.is_sparse:
        draft.make_sparse()
    for name in names:
        SEARCHES[name].apply(trial, draft, names)
    return draft.written()


def searches_table(names: Sequence[str] = tuple(SEARCHES)) -> str:
    """
    List what can be searched.

    :param names: Searches to list.
    :return: Their parameters as a Markdown table.
    """
    lines = ["| search | parameter | values | meaning | suggested if |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        search = SEARCHES[name]
        lines.append(f"| **`{name}`** | | | {search.description} | |")
        for parameter in search.parameters:
            when = f"{parameter.when} " if parameter.when else ""
            lines.append(f"| | `{parameter.name}` | {parameter.values} | {parameter.meaning} | {when}|")
    return "\n".join(lines)
