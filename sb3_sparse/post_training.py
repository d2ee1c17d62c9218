""":func:`quantize`: a trained model as a quantized one, with ranges from observations that it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from sb3_sparse.checks import require_integer
from sb3_sparse.convert import Saved, undisturbed_randomness
from sb3_sparse.layers import SparseLayer
from sb3_sparse.policies import SparsePolicyMixin, sparse_policy
from sb3_sparse.quantization import QuantizationConfig
from sb3_sparse.quantization_plan import plan_quantization

Model = TypeVar("Model", bound=BaseAlgorithm)
#: Observations: an array, or an array by key.
Observations = np.ndarray | Mapping[str, np.ndarray]

BATCH_SIZE = 256


# --- Observations to calibrate with ---


def _length(observations: Observations) -> int:
    lengths = {len(part) for part in observations.values()} if isinstance(observations, Mapping) else {len(observations)}
    if len(lengths) != 1:
        raise ValueError(f"`data` must have as many rows under every key, got {sorted(lengths)}")
    return lengths.pop()


def _slice(observations: Observations, rows: slice | np.ndarray) -> Any:
    if isinstance(observations, Mapping):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


def _given(data: Any, policy: SparsePolicyMixin) -> Observations:
    """``data``, checked."""
    data = {key: np.asarray(part) for key, part in data.items()} if isinstance(data, Mapping) else np.asarray(data)
    if (isinstance(data, np.ndarray) and data.ndim == 0) or _length(data) == 0:
        raise ValueError("calibration without data: `data` holds no observation. Give observations, or leave it out")
    keys = sorted(data) if isinstance(data, Mapping) else None
    wanted = sorted(policy.observation_space) if isinstance(policy.observation_space, spaces.Dict) else None
    if keys != wanted:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row, got {keys or 'an array'}")
    try:
        _, vectorized = policy.obs_to_tensor(_slice(data, slice(0, 1)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row: {error}") from error
    if not vectorized:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row, got a single one")
    return data


def _replayed(model: Any, n_samples: int) -> Observations | None:
    """Observations of the replay buffer, evenly spaced in time, as the policy sees them; None if there are none."""
    buffer = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer) or buffer.size() == 0:
        return None
    n_rows = min(buffer.size(), -(-n_samples // buffer.n_envs))
    rows = np.linspace(0, buffer.size() - 1, n_rows).astype(np.int64)
    stored: Any = buffer.observations
    normalized = buffer._normalize_obs(_slice(stored, rows), model.get_vec_normalize_env())
    space = model.observation_space
    if isinstance(normalized, dict):
        return {key: part.reshape(-1, *space[key].shape) for key, part in normalized.items()}
    # As environments give them: a buffer stores a discrete observation as a vector of one
    return normalized.reshape(-1, *space.shape)


def _rolled_out(model: Any, n_samples: int) -> Observations | None:
    """Observations of fresh episodes with the model's own actions, noise included; None if it has no environment."""
    env = model.get_env()
    if env is None:
        return None
    normalize = model.get_vec_normalize_env()
    was_training = normalize.training if normalize is not None else False
    if normalize is not None:
        normalize.training = False
    try:
        observation, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
        collected: list[Any] = []
        while len(collected) * env.num_envs < n_samples:
            collected.append(_copied(observation))
            extra: dict[str, Any] = {}
            if isinstance(model, MaskablePPO) and is_masking_supported(env):
                extra["action_masks"] = get_action_masks(env)
            actions, state = model.predict(observation, state=state, episode_start=starts, **extra)
            observation, _, starts, _ = env.step(actions)
    finally:
        if normalize is not None:
            normalize.training = was_training
        # Its episode was broken off: the next learn() begins with a reset
        model._last_obs = None
    if isinstance(collected[0], dict):
        return {key: np.concatenate([observation[key] for observation in collected]) for key in collected[0]}
    return np.concatenate(collected)


def _copied(observation: Any) -> Any:
    return {key: part.copy() for key, part in observation.items()} if isinstance(observation, dict) else observation.copy()


# --- Calibration ---


class _Range:
    """Range of the inputs of one layer over the batches that it is shown. A forward pre-hook."""

    def __init__(self, percentile: float | None) -> None:
        self.percentile = percentile
        self.lows: list[float] = []
        self.highs: list[float] = []

    def __call__(self, layer: nn.Module, inputs: tuple[th.Tensor, ...]) -> None:
        values = inputs[0].detach().float()
        if self.percentile is None:
            low, high = th.aminmax(values)
        else:
            low, high = np.percentile(values.cpu().numpy(), (100 - self.percentile, self.percentile))
        self.lows.append(float(low))
        self.highs.append(float(high))

    @property
    def ends(self) -> tuple[float, float]:
        if self.percentile is None:
            return min(self.lows), max(self.highs)
        return float(np.mean(self.lows)), float(np.mean(self.highs))


def _show(policy: Any, observations: Observations) -> None:
    """Let every online network see a batch."""
    tensor, _ = policy.obs_to_tensor(observations)
    if hasattr(policy, "lstm_actor"):
        n_layers, _, hidden_size = policy.lstm_hidden_state_shape
        n_rows = _length(observations)
        zeros = th.zeros(n_layers, n_rows, hidden_size, device=policy.device)
        policy(tensor, RNNStates((zeros, zeros), (zeros, zeros)), th.zeros(n_rows, device=policy.device))
    elif hasattr(policy, "action_net"):
        policy(tensor)
    else:
        actions = policy._predict(tensor)
        if hasattr(policy, "critic"):
            policy.critic(tensor, actions)


def _calibrate(
    policy: SparsePolicyMixin, layers: Mapping[str, SparseLayer], observations: Observations, percentile: float | None
) -> dict[str, _Range]:
    ranges = {name: _Range(percentile) for name in layers}
    handles = [layer.register_forward_pre_hook(ranges[name]) for name, layer in layers.items()]
    policy.set_training_mode(False)
    try:
        with th.no_grad():
            for start in range(0, _length(observations), BATCH_SIZE):
                _show(policy, _slice(observations, slice(start, start + BATCH_SIZE)))
    finally:
        for handle in handles:
            handle.remove()
    for name, found in ranges.items():
        if not found.lows:
            raise ValueError(f"layer {name!r} takes no part in choosing or judging actions: name it in `exempt_layers`")
        if not np.isfinite(found.ends).all():
            raise ValueError(f"calibration found values at the inputs of layer {name!r} that are not finite: {found.ends}")
    return ranges


def quantize(
    model: Model,
    bits: int = 8,
    activation_bits: int = 8,
    input_bits: int | str = 8,
    *,
    networks: str | Sequence[str] | None = None,
    exempt_layers: str | Sequence[str] = (),
    data: Observations | None = None,
    n_samples: int = 4096,
    percentile: float | None = None,
    averaging: float = 0.01,
    freeze_after: int | None = None,
) -> Model:
    """
    Quantize a trained model (post-training quantization). Observations say which ranges the layers' inputs have: ``data``,
    or the model's replay buffer, or fresh rollouts in the model's environment with the model's own actions, in this order.

    The result can be used, saved, and trained on, which is quantization-aware training.

    :param model: A model with a sparse policy. Not changed, except that after rollouts its environment, which they share,
        is reset when training goes on.
    :param bits: Bits of a weight, 2 to 8.
    :param activation_bits: Bits of the inputs of all layers but those that see the observation, 2 to 8.
    :param input_bits: Bits of the inputs of layers that see the observation: 2 to 8, 16, or ``"float"``.
    :param networks: A network's name or several; None for those that choose actions.
    :param exempt_layers: ``"first"``, ``"last"``, a layer name, or a list of these: they stay in float.
    :param data: Observations as the policy sees them (normalised, if it is trained with ``VecNormalize``), one per row, or
        a dict of such arrays.
    :param n_samples: How many observations to take from the replay buffer or from rollouts.
    :param percentile: None: ranges reach from the smallest to the largest value met. Otherwise, in (50, 100), from its
        complement to this percentile, averaged over batches of 256: outliers saturate.
    :param averaging: For training on: weight of the newest batch in the moving average of ranges.
    :param freeze_after: For training on: batches after which ranges stay as they are; None for never.
    :return: A new model on the same environment; its replay or rollout buffer is empty, as after ``load``.
    :raises TypeError: If the model's policy is not sparse.
    :raises ValueError: For arguments out of range, unknown networks or layers, layers that cannot be quantized, sums that
        could overflow, layers that are quantized already, and calibration without data.
    """
    config = QuantizationConfig(bits, activation_bits, input_bits, networks, exempt_layers, averaging, freeze_after)
    require_integer("n_samples", n_samples, low=1)
    is_number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
    if percentile is not None and not (is_number and 50 < percentile < 100):
        raise ValueError(f"`percentile` must be None or a number in (50, 100), got {percentile!r}")
    if not isinstance(getattr(model.policy, "_orig_mod", model.policy), SparsePolicyMixin):
        raise TypeError(
            f"the model's policy is {type(model.policy).__name__}, whose layers cannot be quantized: make it a sparse policy "
            "first, with nothing pruned, by sb3_sparse.sparsify(model, sparsity=0)"
        )
    source = sparse_policy(model)
    for name in plan_quantization(source, config):
        if source.sparsifier.layers[name].quantizer is not None:
            raise ValueError(
                f"layer {name!r} is quantized already; give other `networks` or `exempt_layers`, or call "
                f"policy.sparsifier.set_quantizer({name!r}, None) to make it a float layer first"
            )
    with undisturbed_randomness(source.device):
        if data is not None:
            observations: Observations | None = _given(data, source)
        else:
            observations = _replayed(model, n_samples)
            if observations is None:
                observations = _rolled_out(model, n_samples)
        if observations is None:
            raise ValueError(
                "calibration without data: the model has neither a filled replay buffer nor an environment. Give "
                "observations as `data`, or an environment by model.set_env(env)"
            )
        copy = Saved.of(model).load_beside(model)
        policy = sparse_policy(copy)
        quantizers = plan_quantization(policy, config)
        ranges = _calibrate(policy, {name: policy.sparsifier.layers[name] for name in quantizers}, observations, percentile)
    for name, quantizer in quantizers.items():
        if not quantizer.is_ready:  # the range of an image is known, not found
            quantizer.set_range(*ranges[name].ends, n_observed=len(ranges[name].lows))
        policy.sparsifier.set_quantizer(name, quantizer)
    return copy
