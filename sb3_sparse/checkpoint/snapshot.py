"""Everything that a run is made of, at a moment at which nothing is half done: taken, and brought back."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, JSONOutputFormat, KVWriter, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse.checkpoint.callback_state import (
    CallbackRecorder,
    environments_of,
    given_arguments,
    make_callbacks,
    makers_of,
    restore_callbacks,
    walk,
)
from sb3_sparse.checkpoint.generators import restore_generators, save_generators
from sb3_sparse.checkpoint.model import make_model, restore_moment, save_model
from sb3_sparse.checkpoint.names import CannotEncode, Names
from sb3_sparse.checkpoint.plain import Decoder, Encoder, attributes_of
from sb3_sparse.checkpoint.replay import ReplayRecorder, Segment, read_replay, restore_replay_state
from sb3_sparse.checkpoint.store import Content, Found, Store
from sb3_sparse.checkpoint.vec_env import restore_vec_env, save_vec_env
from sb3_sparse.engine import native
from sb3_sparse.engine.choice import VARIABLE
from sb3_sparse.engine.crossover import crossovers

_PACKAGES = ("sb3-sparse", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "mujoco", "ale-py")


def about() -> dict[str, Any]:
    """
    Say what bits depend on beside the state.

    :return: What bits depend on beside the state: versions of packages, the processor, and which engine can run.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"processor": native.processor(), "engine": os.environ.get(VARIABLE, "auto"), "kernels": _kernels()}
    return {"versions": {"python": platform.python_version(), **versions}, "machine": machine}


def _kernels() -> str | None:
    return native.instruction_set() if native.available() else None


class Recorder:
    """
    Takes what a run is made of.

    :param model: The algorithm in training.
    :param root: The callback of its training.
    :param without: The callback that writes the checkpoint.
    :param store: Where parts go that checkpoints share.
    :param learn_arguments: Arguments of ``learn()``.
    :param allow_pickle: Whether what is no data may be pickled.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        root: BaseCallback,
        without: BaseCallback,
        store: Store,
        learn_arguments: Mapping[str, Any],
        *,
        allow_pickle: bool,
    ) -> None:
        self.model = model
        self.root = root
        self.without = without
        self.store = store
        self.learn_arguments = dict(learn_arguments)
        self.allow_pickle = allow_pickle
        self.callbacks = CallbackRecorder(root, without)
        self.makers = makers_of(root, without)
        self.replay = ReplayRecorder(store)
        #: Rollouts that were completed, and how long processes before this one trained.
        self.n_rollouts = self.nanoseconds = 0

    def check(self) -> list[str]:
        """
        Look at everything once before the training begins.

        :return: What will not be as it was after a resume, for people.
        :raises ValueError: If something is in the way of any checkpoint.
        """
        model, lines = self.model, []
        if not isinstance(model, (OffPolicyAlgorithm, OnPolicyAlgorithm)):
            raise ValueError(f"RunCheckpoint needs an on-policy or off-policy algorithm, {type(model).__name__} is neither")
        assert model.env is not None
        encoder = Encoder()
        try:
            _, pickled = save_model(model, encoder, allow_pickle=self.allow_pickle)
            if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
                self.replay.plain_state(model.replay_buffer, encoder)
        except (CannotEncode, LookupError) as error:
            raise ValueError(f"this training cannot be written to a checkpoint: {error}") from error
        if pickled:
            lines.append(f"{', '.join(pickled)} is no data and is pickled: open such a checkpoint only if you trust it")
        saved = save_vec_env(model.env)
        if saved.lost:
            lines.append(
                f"the environment cannot be restored ({saved.lost[0]}): after a resume its episode begins again, everything "
                "else goes on exactly. checkpoint_state() and restore_checkpoint_state(state) would say what it is made of"
            )
        lines += [f"{note}: it will be as in a new environment" for note in saved.notes]
        if unkept := self.callbacks.unkept():
            lines.append(f"{', '.join(unkept)} is no data: it will be as in a new callback")
        return lines

    def take(self, own: Mapping[str, Any], n_calls: int) -> Content:
        """
        Take a snapshot of everything that the training is made of.

        :param own: Arguments of the callback that writes the checkpoint, JSON.
        :param n_calls: How often it was called.
        :return: Everything. Arrays may be the run's own, and change with it.
        :raises OSError: If a shared part cannot be written.
        """
        model, encoder = self.model, Encoder()
        assert model.env is not None
        environments = {"": model.env}
        for path, callback in walk(self.root):
            environments |= {f"{path}.{name}": env for name, env in environments_of(callback).items()}
        tree: dict[str, Any] = {
            "model": save_model(model, encoder, allow_pickle=self.allow_pickle)[0],
            "environments": _save_environments(environments, encoder),
            "callbacks": self.callbacks.save(encoder),
            "callback classes": self.callbacks.classes,
            "callback arguments": self.callbacks.arguments(),
            "callback makers": self.makers,
            "logger": save_logger(model.logger, encoder),
            "training": {
                "arguments": self.learn_arguments,
                "total_timesteps": model._total_timesteps,
                "n_rollouts": self.n_rollouts,
                "n_calls": n_calls,
                "nanoseconds": self.nanoseconds + time.time_ns() - int(model.start_time),
            },
            "crossovers": dict(crossovers().ratios) if native.available() else {},
            "own": dict(own),
        }
        blobs: list[str] = []
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            tree["replay"] = self.replay.record(model.replay_buffer, model.num_timesteps, encoder)
            blobs = [segment["blob"] for segment in tree["replay"]["segments"]]
        if isinstance(model, OnPolicyAlgorithm):
            tree["rollout"] = _save_rollout(model, encoder)
        # Nothing above draws, but an environment may, when it is asked what it is made of
        tree["generators"] = encoder.encode(save_generators(), "generators")
        return Content(encoder.finish(tree), encoder.arrays, blobs)


def _save_environments(environments: Mapping[str, VecEnv], encoder: Encoder) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path, env in environments.items():
        if id(env) in first:
            nodes[path] = {"same as": first[id(env)]}
            continue
        first[id(env)] = path
        saved = save_vec_env(env)
        index = {name: encoder.array(array, f"environment{path}/{name}") for name, array in saved.arrays.items()}
        nodes[path] = {"tree": saved.tree, "arrays": index, "lost": saved.lost}
    return nodes


def _save_rollout(model: OnPolicyAlgorithm, encoder: Encoder) -> dict[str, Any]:
    """The part of a rollout that has been collected."""
    buffer = model.rollout_buffer
    node: dict[str, Any] = {"n_rows": buffer.pos, "rows": {}}
    if buffer.pos:
        for name, array in _rollout_arrays(buffer).items():
            node["rows"][name] = encoder.encode(array[: buffer.pos], f"rollout_buffer.{name}")
    return node


def _rollout_arrays(buffer: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in attributes_of(buffer).items():
        parts = {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        found |= {
            part: array for part, array in parts.items() if isinstance(array, np.ndarray) and len(array) == buffer.buffer_size
        }
    return found


# --- The logger ---


class _Continued(KVWriter):
    """
    First of a logger's outputs: adds what earlier processes did to what ``learn()`` counts from the beginning of this one.

    :param before: What to add, by name.
    """

    def __init__(self, before: Mapping[str, int]) -> None:
        self.before = before

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for name, value in self.before.items():
            if name in key_values:
                key_values[name] += value

    def close(self) -> None:
        """Nothing is open."""


def _outputs_of(logger: Logger) -> list[Any]:
    return [output for output in logger.output_formats if not isinstance(output, _Continued)]


def _files_of(logger: Logger) -> list[Any]:
    """Files that the logger writes as text, by output; None for outputs without one."""
    files: list[Any] = []
    for output in _outputs_of(logger):
        is_file = isinstance(output, (CSVOutputFormat, JSONOutputFormat)) or (
            isinstance(output, HumanOutputFormat) and output.own_file
        )
        files.append(output.file if is_file else None)
    return files


def save_logger(logger: Logger, encoder: Encoder) -> dict[str, Any]:
    """
    Save what a logger holds.

    :param logger: A logger.
    :param encoder: Encodes its values.
    :return: What was recorded and not yet written out, and what its text files hold.
    """
    values: dict[str, Any] = {}
    for name, value in logger.name_to_value.items():
        try:
            with encoder.attempt():
                values[name] = encoder.encode(value, f"logger.{name}")
        except CannotEncode:
            continue  # a figure or a video
    files: list[dict[str, Any] | None] = []
    for output, file in zip(_outputs_of(logger), _files_of(logger), strict=True):
        if file is None:
            files.append(None)
            continue
        file.flush()
        with open(file.name, "rb") as stream:
            text = np.frombuffer(stream.read(), np.uint8)
        keys = list(output.keys) if isinstance(output, CSVOutputFormat) else []
        files.append(
            {"class": type(output).__name__, "keys": keys, "at": encoder.array(text, f"logger/{type(output).__name__}")}
        )
    excluded = {name: list(value) for name, value in logger.name_to_excluded.items()}
    return {"values": values, "counts": dict(logger.name_to_count), "excluded": excluded, "files": files}


def restore_logger(logger: Logger, node: Mapping[str, Any], decoder: Decoder) -> None:
    """
    Give a logger what another one held.

    :param logger: A logger.
    :param node: What :func:`save_logger` gave. Files go on after what they held, if the logger has the same outputs.
    :param decoder: Decodes it.
    """
    logger.name_to_value.clear()
    logger.name_to_value.update({name: decoder.decode(value) for name, value in node["values"].items()})
    logger.name_to_count.clear()
    logger.name_to_count.update(node["counts"])
    logger.name_to_excluded.clear()
    logger.name_to_excluded.update({name: tuple(value) for name, value in node["excluded"].items()})
    for output, file, saved in zip(_outputs_of(logger), _files_of(logger), node["files"], strict=False):
        if file is None or saved is None or type(output).__name__ != saved["class"]:
            continue
        file.seek(0)
        file.truncate()
        file.write(decoder.arrays[saved["at"]].tobytes().decode())
        file.flush()
        if isinstance(output, CSVOutputFormat):
            output.keys = list(saved["keys"])


# --- Going on ---


class Resumption:
    """
    Brings back what a run is made of.

    :param store: Where the checkpoint is.
    :param found: The checkpoint.
    :param allow_pickle: Whether the file is trusted: it may unpickle, and name classes of any package.
    """

    def __init__(self, store: Store, found: Found, *, allow_pickle: bool) -> None:
        self.store = store
        self.step = found.step
        self.tree = found.content.tree
        self.arrays = found.content.arrays
        self.allow_pickle = allow_pickle
        self.segments: list[Segment] = []

    def _decoder(self) -> Decoder:
        return Decoder(self.tree, self.arrays, Names(trusted=self.allow_pickle))

    @property
    def learn_arguments(self) -> dict[str, Any]:
        """Arguments of the ``learn()`` that was interrupted."""
        return dict(self.tree["training"]["arguments"])

    @property
    def total_timesteps(self) -> int:
        """Environment step at which the training ends."""
        return int(self.tree["training"]["total_timesteps"])

    @property
    def n_rollouts(self) -> int:
        """Rollouts that were completed."""
        return int(self.tree["training"]["n_rollouts"])

    @property
    def seconds(self) -> float:
        """How long the run had trained."""
        return float(self.tree["training"]["nanoseconds"]) / 1e9

    @property
    def n_calls(self) -> int:
        """How often the callback that wrote the checkpoint had been called."""
        return int(self.tree["training"]["n_calls"])

    @property
    def n_rows(self) -> int:
        """Rows of the rollout in which an on-policy algorithm was."""
        return int(self.tree["rollout"]["n_rows"]) if "rollout" in self.tree else 0

    @property
    def own(self) -> dict[str, Any]:
        """Arguments of the callback that wrote the checkpoint."""
        return dict(self.tree["own"])

    @property
    def place(self) -> int | None:
        """Where in the list of callbacks that one stood, None if it was the only one."""
        return self.tree["callback makers"]["place"]

    def make_callbacks(self) -> list[BaseCallback] | None:
        """
        Make the other callbacks of the run anew.

        :return: The other callbacks of the run, made anew; None if there was no list of them.
        :raises ValueError: If one of them cannot be made.
        """
        return make_callbacks(self.tree["callback makers"], Names(trusted=self.allow_pickle))

    def make_model(self, env: VecEnv, device: th.device | str | None) -> BaseAlgorithm:
        """
        Make the algorithm of the run.

        :param env: The environment.
        :param device: Where networks shall be; None: where they were.
        :return: The algorithm with its replay buffer, for a training that goes on.
        :raises Refused: If a shared part of the checkpoint is not what was written.
        :raises ValueError: If something must not be read, or the environment is another.
        """
        # The order in which sums are made depends on it
        th.set_num_threads(self.tree["generators"]["threads"])
        if native.available():
            # A machine decides once which engine is faster, and so does a run: another decision would be other bits
            crossovers().ratios.update(self.tree["crossovers"])
        decoder = self._decoder()
        model = make_model(self.tree["model"], decoder, env, device=device, allow_pickle=self.allow_pickle)
        if "replay" in self.tree:
            assert isinstance(model, OffPolicyAlgorithm)
            assert model.replay_buffer is not None
            self.segments = read_replay(model.replay_buffer, self.tree["replay"], self.store, decoder)
        if self.n_rows:
            # The rest of the rollout; the argument has been taken when the rollout begins, and this is put right
            model.n_steps -= self.n_rows  # type: ignore[attr-defined]
            # As when it began: the training's last rollout may have gone past its end
            model.num_timesteps -= self.n_rows * model.n_envs
        return model

    def check_callbacks(self, recorder: CallbackRecorder) -> None:
        """
        Compare the callbacks of the training that goes on with those of the run.

        :param recorder: Knows the callbacks of the training that goes on.
        :raises ValueError: If they are not those of the run.
        """
        if recorder.classes != self.tree["callback classes"]:
            raise ValueError(
                f"the callbacks must be those of the run: it had {_listed(self.tree['callback classes'])}, got "
                f"{_listed(recorder.classes)}"
            )
        now = recorder.arguments()
        for path, arguments in self.tree["callback arguments"].items():
            for name, value in arguments.items():
                if now[path].get(name) != value:
                    raise ValueError(
                        f"`{name}` of {recorder.classes[path]} is not what it was in the run, which cannot go on exactly with "
                        f"{given_arguments(recorder.callbacks[path]).get(name)!r}: give it the value it had"
                    )

    def bring_back(self, recorder: Recorder) -> None:
        """
        Everything that ``make_model`` has not brought back, in the first rollout of the training that goes on.

        :param recorder: Takes the next checkpoints.
        :raises ValueError: If environments or callbacks are not those of the run.
        """
        model, decoder = recorder.model, self._decoder()
        self.check_callbacks(recorder.callbacks)
        restore_moment(model, self.tree["model"], decoder)
        if "replay" in self.tree:
            assert isinstance(model, OffPolicyAlgorithm)
            assert model.replay_buffer is not None
            restore_replay_state(model.replay_buffer, self.tree["replay"], decoder)
            recorder.replay.follow(model.replay_buffer, self.segments, model.num_timesteps)
        if isinstance(model, OnPolicyAlgorithm):
            self._bring_back_rollout(model, decoder)
        restore_callbacks(recorder.root, self.tree["callbacks"], decoder)
        self._bring_back_environments(recorder)
        restore_logger(model.logger, self.tree["logger"], decoder)
        recorder.n_rollouts, recorder.nanoseconds = self.n_rollouts, self.tree["training"]["nanoseconds"]
        before = {"time/time_elapsed": recorder.nanoseconds // 10**9}
        if isinstance(model, OnPolicyAlgorithm):
            before["time/iterations"] = self.n_rollouts
        model.logger.output_formats[:] = [_Continued(before), *_outputs_of(model.logger)]
        # Last: all of the above may draw
        restore_generators(decoder.decode(self.tree["generators"]))

    def _bring_back_rollout(self, model: OnPolicyAlgorithm, decoder: Decoder) -> None:
        buffer: Any = model.rollout_buffer
        if self.n_rows:
            model.n_steps += self.n_rows
            model.num_timesteps = self.step
            arrays = _rollout_arrays(buffer)
            for name, node in self.tree["rollout"]["rows"].items():
                arrays[name][: self.n_rows] = decoder.decode(node)
            buffer.pos = self.n_rows

    def _bring_back_environments(self, recorder: Recorder) -> None:
        model = recorder.model
        assert model.env is not None
        present = {"": model.env}
        for path, callback in walk(recorder.root):
            present |= {f"{path}.{name}": env for name, env in environments_of(callback).items()}
        for path, node in self.tree["environments"].items():
            if "same as" in node:
                continue
            arrays = {name: self.arrays[key] for name, key in node["arrays"].items()}
            restore_vec_env(present[path], node["tree"], arrays, trusted=self.allow_pickle)
        if self.tree["environments"][""]["lost"]:
            _begin_episodes(model)


def _listed(classes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({path})" for path, name in classes.items()) or "none"


def _begin_episodes(model: BaseAlgorithm) -> None:
    """The environment could not be restored: what was its episode ends here, truncated."""
    assert model.env is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones((model.env.num_envs,), dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does what it was asked
            buffer.truncate_last_trajectory()
    elif buffer is not None and buffer.handle_timeout_termination and (buffer.full or buffer.pos):
        newest = (buffer.pos - 1) % buffer.buffer_size
        buffer.timeouts[newest, buffer.dones[newest] == 0] = 1
