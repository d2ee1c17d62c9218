"""
The searches inside rl-zoo3's ``--optimize`` and ``--trial-id``: they stand in rl-zoo3's own registries of samplers and
converters, in front of the stock ones, which go on to serve whoever has nothing sparse.

rl-zoo3 hands a sampler neither the configuration nor the callbacks, and *replaces* ``policy_kwargs`` by what it returns. The
``ExperimentManager`` has it all; so its two methods that ask the registries are wrapped, and say which manager it is.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise

from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.merge import EVALUATED, evaluate, policy_of, supported_algorithms
from sb3_sparse.tuning.search_for import SearchFor
from sb3_sparse.tuning.spaces import check_configuration, check_searches, count_inputs, sample
from sb3_sparse.tuning.stock import stock_sampler
from sb3_sparse.tuning.trials import claim_study, convert_stock, find_trial, remember, trial_section
from sb3_sparse.zoo.sections import read_section

_NOISES = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
#: Entries that are not arguments of the algorithm.
_NOT_ARGUMENTS = ("callback", "n_timesteps", "noise_type", "noise_std")


class _Trial(threading.local):
    """What the trial of this thread trains with: with ``--n-jobs`` there are several at a time."""

    callbacks: Any = None


_trial = _Trial()
#: What was asked for on the command line.
_chosen: list[str] | None = None


class TrialCallbacks(CallbackList):
    """The callbacks that were sampled for the trial of this thread; rl-zoo3 makes it right after sampling."""

    def __init__(self) -> None:
        from rl_zoo3.utils import get_callback_list

        super().__init__(get_callback_list({"callback": _trial.callbacks}))


@contextmanager
def searching(names: Sequence[str] | None) -> Iterator[None]:
    """
    Inside, ``--optimize`` searches for these instead of what configurations say.

    :param names: Names of searches; None changes nothing.
    """
    global _chosen
    before, _chosen = _chosen, None if names is None else list(names)
    try:
        yield
    finally:
        _chosen = before


class _Managing(threading.local):
    """The ``ExperimentManager`` whose method this thread is in."""

    manager: Any = None


_managing = _Managing()
#: Methods of the ``ExperimentManager`` that ask a registry.
_WRAPPED = ("objective", "load_trial")


def _wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def managed(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, _managing.manager = _managing.manager, self
        try:
            return method(self, *args, **kwargs)
        finally:
            _managing.manager = before

    return managed


def _wrap_manager() -> None:
    """Once, whoever calls: a wrapped method knows what it wraps."""
    from rl_zoo3.exp_manager import ExperimentManager

    for name in _WRAPPED:
        method = getattr(ExperimentManager, name)
        if not hasattr(method, "__wrapped__"):
            setattr(ExperimentManager, name, _wrapped(method))


def require_pandas() -> None:
    """
    Refuse to search without pandas.

    :raises ImportError: Without pandas, which rl-zoo3 only misses after its last trial, when it writes its report.
    """
    if find_spec("pandas") is None:
        raise ImportError(
            "rl-zoo3 writes the report of a search with pandas, which is not installed: pip install 'sb3-sparse[tuning]'"
        )


class _Session:
    """
    What one ``ExperimentManager`` searches.

    :param manager: The manager, its experiment set up.
    """

    def __init__(self, manager: Any) -> None:
        self.algo, self.env = manager.algo, manager.env_name.gym_id
        section = read_section(manager.config, self.env)
        section.update(manager.custom_hyperparams or {})
        # rl-zoo3's -n, or what the section says
        self.section = {**section, "n_timesteps": manager.n_timesteps}
        draft = Draft(self.section, self.algo)
        written = [name for _, kwargs in draft.marks for name in SearchFor(**kwargs).search]
        names = _chosen or written or (["stock"] if draft.is_sparse else None)
        #: None if the search is rl-zoo3's own affair.
        self.names: list[str] | None = None
        if names is None or (names == ["stock"] and not draft.is_sparse):
            return
        self.names = check_searches(names, self.algo)
        require_pandas()
        check_configuration(self.names, self.algo, self.section)
        env = manager.create_envs(1, no_log=True)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        env.close()
        if draft.is_sparse:
            # A mistake in the configuration is not the trials'
            self.check_policy(draft.written())
        if manager.verbose > 0:
            print(f"Searching for: {', '.join(self.names)}")
        self._is_claimed = False
        manager.specified_callbacks = [f"{TrialCallbacks.__module__}.{TrialCallbacks.__qualname__}"]

    def check_policy(self, section: Mapping[str, Any]) -> None:
        """
        Make the policy of a section once, and forget it: whatever its networks cannot have is said here.

        :param section: A section.
        :raises ValueError: As the policy's constructor, like all that follows.
        :raises TypeError: See there.
        :raises NotImplementedError: See there.
        """
        policy = policy_of(self.algo, section["policy"])
        kwargs = {**(evaluate(section.get("policy_kwargs")) or {}), "engine": "torch"}
        with th.random.fork_rng(devices=[]):
            policy(self.observation_space, self.action_space, lambda _: 1e-3, **kwargs)

    def sample(self, trial: Any) -> dict[str, Any]:
        """
        Sample for a trial of rl-zoo3's.

        :param trial: A trial.
        :return: Keyword arguments of the algorithm that are not what the configuration says.
        """
        from optuna import TrialPruned

        assert self.names is not None
        if not self._is_claimed:
            claim_study(trial.study, self.algo, self.env)
            self._is_claimed = True
        found = sample(trial, self.names, self.algo, self.section, n_inputs=count_inputs(self.observation_space))
        remember(trial, self.algo, self.env, found)
        try:
            self.check_policy(found)
        except (ValueError, TypeError, NotImplementedError) as error:
            # rl-zoo3 makes models where nothing catches an error: this one trial would end the search
            print(f"Trial {trial.number} cannot be trained: {error}")
            raise TrialPruned(str(error)) from error
        _trial.callbacks = found.get("callback")
        return self._arguments(found)

    def _arguments(self, found: Mapping[str, Any]) -> dict[str, Any]:
        changed = {key: value for key, value in found.items() if key not in self.section or value != self.section[key]}
        result = {
            key: evaluate(value) if key in EVALUATED else value for key, value in changed.items() if key not in _NOT_ARGUMENTS
        }
        if isinstance(result.get("train_freq"), list):
            result["train_freq"] = tuple(result["train_freq"])
        if "policy" in result:
            result["policy"] = policy_of(self.algo, result["policy"])
        if "noise_type" in changed or "noise_std" in changed:
            result["action_noise"] = self._noise(found["noise_type"], found["noise_std"])
        return result

    def _noise(self, kind: str, std: float) -> ActionNoise:
        size = self.action_space.shape[0]
        return _NOISES[kind.strip()](np.zeros(size), std * np.ones(size))


_sessions: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()
_lock = threading.Lock()


def _session(manager: Any) -> _Session:
    with _lock:
        if manager not in _sessions:
            _sessions[manager] = _Session(manager)
        return _sessions[manager]


class _Sampler:
    """
    Stands in rl-zoo3's registry of samplers.

    :param algo: rl-zoo3's name of the algorithm.
    """

    def __init__(self, algo: str) -> None:
        self.algo = algo
        #: Who stood there before.
        self.stock = stock_sampler(algo)

    def __call__(self, trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        manager = _managing.manager
        if manager is not None and (session := _session(manager)).names is not None:
            return session.sample(trial)
        if self.stock is None:
            raise ValueError(f"rl-zoo3 has no sampler for {self.algo}: search with `--search` and sb3-sparse train")
        return self.stock(trial, n_actions, n_envs, additional_args)


class _Converter:
    """
    Stands in rl-zoo3's registry of converters, which turn the parameters of a trial into a part of a section.

    :param algo: rl-zoo3's name of the algorithm.
    """

    def __init__(self, algo: str) -> None:
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

        self.algo = algo
        converter = HYPERPARAMS_CONVERTER.get(algo)
        self.stock = getattr(converter, "stock", converter)

    def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
        manager = _managing.manager
        if manager is not None and manager.trial_id is not None:
            trial = find_trial(manager.storage, manager.study_name, manager.trial_id)
            if (section := trial_section(trial, self.algo, manager.env_name.gym_id)) is not None:
                return section
        if self.stock is None:
            raise ValueError(f"rl-zoo3 has no converter for {self.algo}")
        return convert_stock(self.stock, params)


def register_searches() -> None:
    """
    Put the searches into rl-zoo3's registries, for every algorithm with sparse policies. Importing ``sb3_sparse`` does it if
    rl-zoo3 is imported already, ``sb3-sparse train`` always. What rl-zoo3 does without a sparse policy, ``--search`` and
    :class:`~sb3_sparse.SearchFor` stays as it is.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    _wrap_manager()
    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    for algo in supported_algorithms():
        samplers[algo] = _Sampler(algo)
        converters[algo] = _Converter(algo)
