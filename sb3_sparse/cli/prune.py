"""What ``sb3-sparse prune`` does: from a file to a file, with further training in between if that is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.cli.progress import can_show_progress
from sb3_sparse.conversion.loading import find_model_file, load_model, save_atomically
from sb3_sparse.conversion.sparsify import sparsify
from sb3_sparse.conversion.untrusted import load_untrusted
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import require_writable
from sb3_sparse.zoo.runs import find_zoo_run, make_training_env, require_fitting_env


def check_finetuning(model: BaseAlgorithm, n_steps: int, *, n_stored: int = 0) -> int:
    """
    How many of the steps only fill the replay buffer.

    :param model: The model.
    :param n_steps: Environment steps of further training.
    :param n_stored: Transitions that there are already.
    :return: Environment steps without gradient steps, 0 for on-policy algorithms.
    :raises ValueError: If none would be left to train in.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return 0
    n_fill = max(model.learning_starts - n_stored, 0)
    if n_fill >= n_steps:
        raise ValueError(
            f"`--finetune` {n_steps} is too short: the replay buffer, which is not in the model's file, holds {n_stored} "
            f"transitions, and the first {n_fill} steps (`learning_starts`) only fill it. Give more than {n_fill}"
        )
    return n_fill


def _n_stored(model: OffPolicyAlgorithm) -> int:
    assert model.replay_buffer is not None
    return model.replay_buffer.size() * model.n_envs


def finetune(model: BaseAlgorithm, n_steps: int) -> None:
    """
    Train a loaded model further. Counters and schedules go on as if the training had been that much longer
    (``reset_num_timesteps=False``), so neither exploration nor learning rate begins anew. While the replay buffer of an
    off-policy model holds less than ``learning_starts``, the agent acts as it has learnt, and no gradient step is made.

    :param model: A model with an environment.
    :param n_steps: Environment steps, with those that fill the replay buffer.
    :raises ValueError: If none would be left to train in.
    """
    n_fill, progress_bar = 0, can_show_progress()
    if isinstance(model, OffPolicyAlgorithm):
        n_fill = check_finetuning(model, n_steps, n_stored=_n_stored(model))
        if n_fill:
            gradient_steps, model.gradient_steps = model.gradient_steps, 0
            try:
                model.learn(n_fill, reset_num_timesteps=False, progress_bar=progress_bar)
            finally:
                model.gradient_steps = gradient_steps
    model.learn(n_steps - n_fill, reset_num_timesteps=False, progress_bar=progress_bar)


def output_file(file: Path, output: str | Path | None, *, force: bool) -> Path:
    """
    Say where the pruned model goes.

    :param file: The model that is pruned.
    :param output: Where the new one shall go. None: ``<model>-pruned.zip`` beside it.
    :param force: Whether a file that is there may be replaced.
    :return: Where it goes.
    :raises ValueError: If a file is there, or it cannot be written.
    """
    result = file.with_name(f"{file.stem}-pruned.zip") if output is None else Path(output)
    if result.is_dir():
        raise ValueError(f"`--output` {result} is a folder: give a file")
    if result.suffix != ".zip":
        result = result.with_name(f"{result.name}.zip")
    require_writable("--output", result)
    if result.exists() and not force:
        what = "is the model itself" if result.resolve() == file.resolve() else "exists"
        raise ValueError(f"`--output` {result} {what}: choose another name, or allow to replace it with `--force`")
    return result


def prune_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    distribution: str | None = None,
    pattern: str | None = None,
    dense_layers: Sequence[str] | None = None,
    scope: str = "layer",
    algorithm: str | None = None,
    finetune_steps: int = 0,
    env: str | None = None,
    seed: int | None = None,
    force: bool = False,
    allow_pickle: bool = True,
) -> tuple[BaseAlgorithm, Path]:
    """
    Prune a saved model, save it, and train it further if that is wanted (and save it again).

    :param path: A model's zip, or a folder: the model saved there last.
    :param output: See :func:`output_file`.
    :param sparsity: See :func:`sb3_sparse.sparsify`, as for the following.
    :param distribution: How the sparsity is spread.
    :param pattern: Which masks are legal.
    :param dense_layers: Layers that stay dense.
    :param scope: Across what magnitudes are compared.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param finetune_steps: Environment steps of further training, 0 for none.
    :param env: Environment to train in. None: what rl-zoo3's folder says.
    :param seed: Seed of the further training.
    :param force: Whether a file that is there may be replaced.
    :param allow_pickle: Whether the model's file is unpickled, see :func:`sb3_sparse.sparsify`. What rl-zoo3 left beside it is
        in any case if it is trained further: statistics of observations, replay buffer, configuration.
    :return: The new model and its file.
    :raises ValueError: For mistakes in the arguments, before anything is written.
    """
    file = find_model_file(path)
    target = output_file(file, output, force=force)
    require_integer("--finetune", finetune_steps, low=0)
    if seed is not None:
        require_integer("--seed", seed, low=0, high=2**32 - 1)
    kwargs: dict[str, Any] = dict(
        distribution=distribution, pattern=pattern, dense_layers=dense_layers, scope=scope, algorithm=algorithm
    )
    kwargs["allow_pickle"] = allow_pickle
    if not finetune_steps:
        model = sparsify(file, sparsity, device="cpu", **kwargs)
        save_atomically(model, target)
        return model, target
    run = find_zoo_run(file)
    env_id = env or run.env_id
    if env_id is None:
        raise ValueError(
            "`--finetune` needs an environment: give `--env`; beside the model there is no folder of rl-zoo3 that names it"
        )
    old = load_model(file, algorithm) if allow_pickle else load_untrusted(file, algorithm=algorithm)
    if run.replay_buffer is None:
        check_finetuning(old, finetune_steps)  # before anything is made
    playground = make_training_env(run, env_id, old.n_envs, seed)
    require_fitting_env(old, playground, env_id)
    model = sparsify(file, sparsity, env=playground, **kwargs)
    if isinstance(model, OffPolicyAlgorithm) and run.replay_buffer is not None:
        model.load_replay_buffer(run.replay_buffer)
        check_finetuning(model, finetune_steps, n_stored=_n_stored(model))
    save_atomically(model, target)
    if seed is not None:
        model.set_random_seed(seed)
    finetune(model, finetune_steps)
    save_atomically(model, target)
    return model, target
