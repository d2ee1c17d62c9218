"""A configuration that is being changed by searches, with the questions they ask of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_sparse.callbacks.gradual_pruning import GradualPruning
from sb3_sparse.callbacks.mask_refresh import MaskRefresh
from sb3_sparse.callbacks.quantization_aware import QuantizationAware
from sb3_sparse.callbacks.replay import DelayedNStep
from sb3_sparse.callbacks.revival import Revival
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.masks.config import DEFAULT_SPARSITY
from sb3_sparse.masks.patterns import Pattern, parse_pattern
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.tuning.merge import (
    EVALUATED,
    Callbacks,
    accepted,
    algorithm_of,
    evaluate,
    plain,
    policy_of,
    source,
    sparse_twin,
    write_kwargs,
)
from sb3_sparse.tuning.search_for import SearchFor

#: Updaters that keep the number of weights.
UPDATERS = (SET, RigL, MaskRefresh)
#: What an updater is made with where neither the configuration nor a search says it: Graesser et al. (ICML 2022) take 0.5
#: with cosine, RLx2 too; 100 updates are a cadence of 10,000 steps in a training of a million.
DEFAULT_UPDATES = 100
DEFAULT_DROP: dict[str, Any] = {"drop_fraction": 0.5, "drop_schedule": "cosine"}
#: Algorithms with one network.
_VALUE_NETWORKS = {"dqn": "q_net", "qrdqn": "quantile_net"}
BUFFER = "__import__('sb3_sparse').DynamicNStepReplayBuffer"


class Draft:
    """
    One environment's section of an rl-zoo3 configuration, taken apart.

    :param section: The section, as loaded; not changed.
    :param algo: rl-zoo3's name of the algorithm.
    :param n_inputs: Number of inputs of the policy's first layers, None if that is not known.
    :raises ValueError: If a part of the section makes no sense.
    """

    def __init__(self, section: Mapping[str, Any], algo: str, n_inputs: int | None = None) -> None:
        self.algo, self.algorithm, self.n_inputs = algo, algorithm_of(algo), n_inputs
        self.values = {key: plain(value) for key, value in section.items()}
        self._kwargs = {
            name: dict(evaluate(self.values.get(name)) or {}) for name in ("policy_kwargs", "replay_buffer_kwargs")
        }
        self.policy_kwargs = plain(self._kwargs["policy_kwargs"])
        self.buffer_kwargs = plain(self._kwargs["replay_buffer_kwargs"])
        self.callbacks = Callbacks(self.values.get("callback"))
        #: What the configuration says of its own searches; its own affair, and no part of what is found.
        self.marks = self.callbacks.of(SearchFor)
        self.callbacks.remove(SearchFor)
        if "policy" not in self.values:
            raise ValueError("`policy` is missing from the configuration")
        self.policy = policy_of(algo, self.values["policy"])
        self._had_callbacks = "callback" in self.values

    def written(self) -> dict[str, Any]:
        """
        Write the section down.

        :return: The section, everything in it as YAML holds it. No entry of the original is missing.
        """
        result = {**self.values}
        for name, new in (("policy_kwargs", self.policy_kwargs), ("replay_buffer_kwargs", self.buffer_kwargs)):
            if new or name in result:
                result[name] = write_kwargs(self.values.get(name), self._kwargs[name], new)
        for name, value in result.items():
            if isinstance(value, type):
                result[name] = source(value) if name in EVALUATED else f"{value.__module__}.{value.__qualname__}"
            elif isinstance(value, tuple):
                result[name] = list(value)
        callbacks = self.callbacks.written()
        if callbacks or self._had_callbacks:
            result["callback"] = callbacks
        return plain(result)

    # --- The policy ---

    @property
    def is_sparse(self) -> bool:
        """Whether the policy is sparse."""
        return issubclass(self.policy, SparsePolicyMixin)

    def make_sparse(self) -> None:
        """
        Put the sparse policy, by its dotted path, in the place of a stock one or an alias. What was dense stays dense.

        :raises ValueError: For a policy that has no sparse counterpart.
        """
        was_sparse = self.is_sparse
        self.values["policy"] = sparse_twin(self.algo, self.policy)
        self.policy = policy_of(self.algo, self.values["policy"])
        if not was_sparse:
            self.policy_kwargs["sparsity"] = 0.0

    @property
    def has_convolutions(self) -> bool:
        """Whether the policy looks at images."""
        return "Cnn" in self.policy.__name__ or "MultiInput" in self.policy.__name__

    @property
    def pattern(self) -> Pattern:
        """Which masks are legal."""
        return parse_pattern(self.policy_kwargs.get("pattern", "unstructured"))

    @property
    def pruning(self) -> dict[str, Any] | None:
        """Keyword arguments of gradual pruning, if there is any; changing them changes the configuration."""
        found = self.callbacks.of(GradualPruning)
        return found[0][1] if found else None

    @property
    def _goal(self) -> tuple[dict[str, Any], str]:
        """Where it says how sparse the networks are (in the end)."""
        pruning = self.pruning
        return (self.policy_kwargs, "sparsity") if pruning is None else (pruning, "final_sparsity")

    @property
    def explicit_distribution(self) -> Any:
        """A distribution that says how sparse each layer is, or None."""
        distribution = self._goal[0].get("distribution")
        return distribution if isinstance(distribution, Mapping) else None

    @property
    def sparsity(self) -> Any:
        """How sparse the networks are, in the end: a number, a map, or None where it follows from something else."""
        arguments, key = self._goal
        value = arguments.get(key)
        if value is None and self.explicit_distribution is None and self.pattern.fixed_sparsity is None:
            return DEFAULT_SPARSITY
        return value

    @property
    def is_dense(self) -> bool:
        """Whether nothing of the policy is pruned, now or later."""
        sparsity = self.sparsity
        return not (any(sparsity.values()) if isinstance(sparsity, Mapping) else sparsity is None or sparsity > 0)

    @property
    def networks(self) -> list[str]:
        """The networks that are (or become) sparse: those that a map names, otherwise all that there are."""
        if isinstance(self.sparsity, Mapping) and any(self.sparsity.values()):
            return [network for network, value in self.sparsity.items() if value]
        if self.algo in _VALUE_NETWORKS:
            return [_VALUE_NETWORKS[self.algo]]
        shared = self.policy_kwargs.get("share_features_extractor", issubclass(self.algorithm, OnPolicyAlgorithm))
        return ["actor", "critic", *(["features_extractor"] if shared and "Cnn" in self.policy.__name__ else [])]

    def _start_dense(self) -> None:
        """Gradual pruning to a goal that is sampled begins where any goal can be reached from."""
        if self.pruning is not None:
            self.policy_kwargs["sparsity"] = 0.0
            if isinstance(self.policy_kwargs.get("distribution"), Mapping):
                del self.policy_kwargs["distribution"]

    def set_sparsity(self, sparsity: float | dict[str, float]) -> None:
        """
        Say how sparse networks are.

        :param sparsity: How sparse each network is, or all of them are; with gradual pruning, in the end. It takes the place
            of an explicit distribution.
        """
        arguments, key = self._goal
        if (explicit := self.explicit_distribution) is not None:
            del arguments["distribution"]
            if "er_epsilon" in explicit:
                arguments["distribution"] = "er"
        arguments[key] = sparsity
        self._start_dense()

    def set_distribution(self, distribution: str) -> None:
        """
        Say how sparsity is spread over layers.

        :param distribution: Name of a distribution.
        """
        self._start_dense()
        self.policy_kwargs["distribution"] = distribution
        if self.pruning is not None:
            self.pruning.pop("distribution", None)  # it is the policy's then

    def set_pattern(self, spec: str) -> None:
        """
        Say which masks are legal.

        :param spec: A pattern. N:M says how sparse every sparse network is; coming from N:M, the sparsity stays what it was.
        """
        old, new = self.pattern.fixed_sparsity, parse_pattern(spec).fixed_sparsity
        networks, is_map = self.networks, isinstance(self.sparsity, Mapping)
        self.policy_kwargs["pattern"] = spec
        arguments, key = self._goal
        if new is not None:
            self.policy_kwargs.pop("distribution", None)
            arguments.pop("distribution", None)
            arguments.pop(key, None)
            if is_map:
                arguments[key] = dict.fromkeys(networks, new)
            if self.pruning is not None:
                self.pruning.pop("scope", None)  # compares layers, which N:M makes equal
            if self.n_inputs is None or parse_pattern(spec).impossible((1, self.n_inputs)) is not None:
                dense = self.policy_kwargs.get("dense_layers", [])
                dense = [dense] if isinstance(dense, str) else list(dense)
                self.policy_kwargs["dense_layers"] = dense if "first" in dense else [*dense, "first"]
        elif old is not None:
            arguments[key] = dict.fromkeys(networks, old) if is_map else old
        self._start_dense()
        if spec.startswith("block"):
            for _, kwargs in self.callbacks.of(SET, RigL):
                kwargs.pop("sign_split", None)  # has no meaning for whole blocks

    # --- Callbacks ---

    @property
    def updaters(self) -> list[tuple[type[BaseCallback], dict[str, Any]]]:
        """Class and keyword arguments of what changes masks and keeps their number."""
        return self.callbacks.of(*UPDATERS)

    def set_updater(self, updater: type[BaseCallback] | None, **kwargs: Any) -> None:
        """
        Put one updater in the place of all there are. What the first of them says that the new one understands too, it says.

        :param updater: Its class, None for masks that never change.
        :param kwargs: Keyword arguments that it is given besides.
        """
        present = self.updaters
        where = self.callbacks.remove(*UPDATERS, Revival)
        if updater is None:
            return
        kept = accepted(updater, present[0][1]) if present else {}
        # One updater that is for all networks makes the new one so too
        kept.pop("networks", None)
        named = [name for name in (known.get("networks") for _, known in present) if name is not None]
        if present and len(named) == len(present):
            listed = [[name] if isinstance(name, str) else list(name) for name in named]
            kept["networks"] = list(dict.fromkeys(name for part in listed for name in part))
        if self.pattern.spec.startswith("block"):
            kept.pop("sign_split", None)
        if "every" not in kept:
            kept |= self.cadence(DEFAULT_UPDATES)
        if issubclass(updater, SET):
            kept = {**DEFAULT_DROP, **kept}
        self.callbacks.put(where, updater, {**kept, **kwargs})

    def cadence(self, updates: int) -> dict[str, Any]:
        """
        Turn a number of updates into an updater's arguments.

        :param updates: Number of updates in the whole training.
        :return: Arguments of an updater that makes about as many.
        """
        return {"every": max(self.n_learning_steps // updates, 1), "unit": "timesteps"}

    def merge_callback(self, callback: type[BaseCallback], kwargs: Mapping[str, Any]) -> None:
        """
        Change a callback, or add it.

        :param callback: A callback class.
        :param kwargs: Keyword arguments that the configuration's entry gets; if it has none, a new entry does.
        """
        present = self.callbacks.of(callback)
        if present:
            present[0][1].update(kwargs)
        else:
            self.callbacks.put(0, callback, dict(kwargs))

    # --- The training ---

    @property
    def n_timesteps(self) -> int:
        """Environment steps of the training."""
        if "n_timesteps" not in self.values:
            raise ValueError("`n_timesteps` is missing from the configuration")
        return int(self.values["n_timesteps"])

    @property
    def n_learning_steps(self) -> int:
        """Environment steps after learning has begun, at least 1."""
        start = 0 if self.is_on_policy else int(self.values.get("learning_starts", 100))
        return max(self.n_timesteps - start, 1)

    @property
    def n_gradient_steps(self) -> int:
        """
        Gradient steps of an off-policy training. Where they come once per episode, whose length nobody knows, as many as
        environment steps.
        """
        n_envs, steps = int(self.values.get("n_envs", 1)), self.values.get("gradient_steps", 1)
        frequency = self.values.get("train_freq", 4 if self.algo in _VALUE_NETWORKS else 1)
        if isinstance(frequency, (list, tuple)):
            if frequency[1] == "episode":
                return self.n_learning_steps
            frequency = frequency[0]
        per_rollout = frequency * n_envs if steps < 0 else steps
        return max(math.ceil(self.n_learning_steps / (frequency * n_envs)) * per_rollout, 1)

    @property
    def is_on_policy(self) -> bool:
        """Whether the algorithm has no replay buffer."""
        return issubclass(self.algorithm, OnPolicyAlgorithm)

    @property
    def replay_buffer(self) -> Any:
        """Class of the replay buffer, None for the algorithm's own choice."""
        return evaluate(self.values.get("replay_buffer_class"))

    @property
    def uses_hindsight(self) -> bool:
        """Whether the replay buffer is HER's."""
        return isinstance(self.replay_buffer, type) and issubclass(self.replay_buffer, HerReplayBuffer)

    def set_gamma(self, gamma: float) -> None:
        """
        Set the discount.

        :param gamma: Discount of the algorithm, and of a replay buffer that has one.
        """
        self.values["gamma"] = gamma
        if "gamma" in self.buffer_kwargs:
            self.buffer_kwargs["gamma"] = gamma

    def set_n_step(self, n_steps: int, delay: float, **kwargs: Any) -> None:
        """
        Set multi-step targets.

        :param n_steps: Step length of the targets.
        :param delay: Fraction of the gradient steps that are made with one step.
        :param kwargs: Further keyword arguments of :class:`~sb3_sparse.DelayedNStep`.
        """
        if "n_steps" in self.values:
            self.values["n_steps"] = 1  # Stable-Baselines3's own are not used with another buffer
        self.values["replay_buffer_class"] = BUFFER
        self.buffer_kwargs |= {"n_steps": 1, "gamma": self.values.get("gamma", 0.99)}
        if n_steps == 1:
            self.callbacks.remove(DelayedNStep)
        else:
            kwargs = {"n_steps": n_steps, "delay": round(delay * self.n_gradient_steps), **kwargs}
            self.merge_callback(DelayedNStep, kwargs)

    def set_noise(self, kind: str | None, std: float) -> None:
        """
        Set the action noise.

        :param kind: rl-zoo3's name of an action noise, None for no noise. That is written as noise of size 0: rl-zoo3 hands a
            ``noise_type`` of None on to the algorithm, which does not know it.
        :param std: Its standard deviation.
        """
        self.values["noise_type"], self.values["noise_std"] = kind or "normal", std if kind else 0.0

    def set_pruning(self, **kwargs: Any) -> None:
        """
        Prune gradually to what the configuration says how sparse its networks are, from dense.

        :param kwargs: Keyword arguments of :class:`~sb3_sparse.GradualPruning`.
        """
        if self.pruning is None:
            explicit = self.explicit_distribution
            goal = {"final_sparsity": self.sparsity, "distribution": explicit}
            if explicit is not None:
                del self.policy_kwargs["distribution"]
            self.policy_kwargs["sparsity"] = 0.0
            self.callbacks.put(0, GradualPruning, {name: value for name, value in goal.items() if value is not None})
        assert self.pruning is not None
        self.pruning.update(kwargs)

    def set_quantization(self, **kwargs: Any) -> None:
        """
        Quantize while training.

        :param kwargs: Keyword arguments of :class:`~sb3_sparse.QuantizationAware`.
        """
        self.merge_callback(QuantizationAware, kwargs)
