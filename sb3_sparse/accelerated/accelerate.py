"""
:func:`accelerate`: a model whose ``train()`` is a few native calls.

Stock ``train()`` is the specification. Whatever happens in it that is not known here, such as a hook, a frozen layer, another
optimizer, a quantized network or an updater that wants dense gradients, is left to it, for as many steps as need it.
"""

from __future__ import annotations

import warnings
from inspect import signature
from typing import Any, TypeVar

from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.accelerated.dqn import DQNStep
from sb3_sparse.accelerated.sac import SACStep
from sb3_sparse.accelerated.samples import Handed
from sb3_sparse.accelerated.steps import Step, Unsupported
from sb3_sparse.accelerated.td3 import TD3Step
from sb3_sparse.engine import native
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.policies.base import sparse_policy

AlgorithmT = TypeVar("AlgorithmT", bound=BaseAlgorithm)
#: What makes the steps of ``train()``, by the stock algorithm that it is of.
STEPS: dict[type[OffPolicyAlgorithm], type[Step]] = {TD3: TD3Step, DDPG: TD3Step, SAC: SACStep, DQN: DQNStep}
#: Attributes of a model that are no part of it: they are not saved.
_OWN = ("train", "_excluded_save_params")


class Train:
    """
    What stands in for a model's ``train``.

    :param model: The model.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model: Any = model
        self._step: Step | None = None
        #: Why the last step that was stock's had to be.
        self.why_stock: str | None = None
        self._said: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_model"])  # type: ignore[misc]

    def _stock(self, gradient_steps: int, batch_size: int) -> None:
        type(self._model).train(self._model, gradient_steps=gradient_steps, batch_size=batch_size)

    def _find(self) -> Step:
        """What makes steps of the model as it is."""
        step = self._step
        if step is None or not step.is_present():
            model = self._model
            policy = sparse_policy(model)
            for name, optimizer in policy.sparsifier.optimizers.items():
                # Where nothing is pruned, the policy left torch's Adam as it is
                if policy.sparsifier.engine is not None and not isinstance(optimizer, SurvivorAdam):
                    policy.sparsifier.adopt_optimizer(name)
            step = self._step = STEPS[algorithm_of(model)](model)
        return step

    def _say(self, reason: str) -> None:
        self.why_stock = reason
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"accelerate: stock train() runs, because {reason}", UserWarning, stacklevel=4)

    def __call__(self, gradient_steps: int, batch_size: int | None = None) -> None:
        model = self._model
        if batch_size is None:
            batch_size = int(signature(type(model).train).parameters["batch_size"].default)
        try:
            step = self._find()
        except Unsupported as error:
            self._step = None
            self._say(str(error))
            return self._stock(gradient_steps, batch_size)
        step.begin()
        model._update_learning_rate(step.optimizers())
        for step.index in range(gradient_steps):
            self._make(step, batch_size)
        step.log()
        return None

    def _make(self, step: Step, batch_size: int) -> None:
        """One gradient step."""
        reason = step.why_not()
        if reason is None and not step.wants_dense_gradients():
            if step.sampler.draw(batch_size) and step.run():
                if not step.counts_itself:
                    self._model._n_updates += 1
                return
            reason = (
                "a batch or a network is not what the kernels take: values that are not finite, samples of other dtypes or in "
                "other number than asked for, or pruned weights not zero"
            )
            self._say(reason)
            return self._one_stock(step, batch_size, step.sampler.samples())
        if reason is not None:
            self._say(reason)
        self._one_stock(step, batch_size, None)
        return None

    def _one_stock(self, step: Step, batch_size: int, samples: Any) -> None:
        """One gradient step of stock ``train()``; what it logs is taken down with the others."""
        model = self._model
        values = model.logger.name_to_value
        before = {name: values.pop(name) for name in step.values if name in values}
        buffer = model.replay_buffer
        if samples is not None:
            model.replay_buffer = Handed(buffer, samples)
        try:
            with step.as_only_one():
                self._stock(1, batch_size)
        finally:
            model.replay_buffer = buffer
        for name, noted in step.values.items():
            if name in values:
                noted.append(float(values[name]))
            elif name in before:
                values[name] = before[name]


class _Excluded:
    """Stands in for a model's list of attributes that are not saved."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model

    def __call__(self) -> list[str]:
        return [*type(self._model)._excluded_save_params(self._model), *_OWN]


def algorithm_of(model: BaseAlgorithm) -> type[OffPolicyAlgorithm]:
    """
    Find the stock algorithm whose ``train()`` a model has.

    :param model: A model.
    :return: TD3, DDPG, SAC or DQN.
    :raises TypeError: For a model of another algorithm, and one with a ``train()`` of its own.
    """
    train = getattr(type(model), "train", None)
    for algorithm in STEPS:
        if train is algorithm.train and isinstance(model, algorithm):
            return algorithm
    names = ", ".join(algorithm.__name__ for algorithm in STEPS)
    raise TypeError(f"`model` is a {type(model).__name__}; accelerate() knows the train() of {names}")


def accelerate(model: AlgorithmT) -> AlgorithmT:
    """
    Let a model train by a few native calls per gradient step, to the same results within float rounding.

    Random numbers, optimizers' states, masks, logs and saved zips are stock's: the model can be saved, loaded and copied as
    before (a loaded one is a stock one again). Steps that do more than is known here are stock's, which is said once for each
    reason. What differs: sums are made in another order; after ``train()`` the distribution object of SAC's actor holds no
    last pass; where values stop being finite, not always the same ones do.

    :param model: TD3, DDPG, SAC or DQN with a sparse policy (``sparsity=0.0``: a dense one) on vectors, float32, on the CPU.
    :return: The same model.
    :raises TypeError: For another algorithm, a ``train()`` of one's own, and a policy that is not sparse.
    :raises ImportError: Without the compiled engine.
    """
    algorithm_of(model)
    sparse_policy(model)
    if not native.available():
        raise ImportError(f"accelerate: {native.why_not()}")
    if not isinstance(vars(model).get("train"), Train):
        own = [name for name in _OWN if name in vars(model)]
        if own:
            raise TypeError(f"`model` has a {own[0]}() of its own, which accelerate() would put aside")
        vars(model).update(train=Train(model), _excluded_save_params=_Excluded(model))
    return model
