"""Which layers of a policy are quantized, and how: everything that can be refused is refused here, before any work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from torch import nn

from sb3_sparse.masks.plan import LayerInfo, select_layers
from sb3_sparse.nn.layers import SparseConv2d
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.policies.passes import copied, forward_all, sample, to_tensor
from sb3_sparse.policies.structure import SHARED_NETWORK, find_submodule
from sb3_sparse.policies.usage import N_SAMPLES
from sb3_sparse.quantization.config import QuantizationConfig
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.utils.randomness import devices_of, undisturbed_randomness

#: Networks that choose actions: what is deployed. Critics and value functions serve training alone.
DEPLOYED_NETWORKS = ("actor", "q_net", "quantile_net", SHARED_NETWORK)
#: From which change of a feature's weights on one is warned, if it is so many times that of the feature in the middle.
_COARSE, _COARSER = 0.2, 2.5


def _observation_layers(policy: SparsePolicyMixin, infos: Sequence[LayerInfo]) -> set[str]:
    """Layers whose inputs are the observation, or hold a part of it as it is."""
    own = {info.name for info in infos if "features_extractor." in info.name}
    # A combined extractor hands on what is no image as it is
    combined = [module for module in policy.modules() if isinstance(module, CombinedExtractor)]
    passes_on = not own or any(isinstance(part, nn.Flatten) for module in combined for part in module.extractors.values())
    found = set()
    for network in {info.network for info in infos}:
        members = [info for info in infos if info.network == network]
        inside = [info for info in members if info.name in own]
        beyond = [info for info in members if info.name not in own]
        found |= {info.name for info in inside if info.depth == min(other.depth for other in inside)}
        if passes_on and not hasattr(policy, "lstm_actor"):
            found |= {info.name for info in beyond if info.depth == min(other.depth for other in beyond)}
    return found


def _is_image_layer(policy: SparsePolicyMixin, name: str) -> bool:
    """Whether a layer's input is an image as Stable-Baselines3 scales it, so that its range is [0, 1], exactly."""
    space = policy.observation_space
    if (key := re.search(r"\bextractors\.([^.]+)\.", name)) is not None and isinstance(space, spaces.Dict):
        space = space[key[1]]
    parts = name.split(".")
    owners = [find_submodule(policy, ".".join(parts[:length])) for length in range(1, len(parts))]
    return (
        policy.normalize_images
        and is_image_space(space)
        and isinstance(policy.get_submodule(name), SparseConv2d)
        and any(isinstance(owner, NatureCNN) and type(owner).forward is NatureCNN.forward for owner in owners)
    )


def _refuse_bypassed(policy: SparsePolicyMixin, quantizers: Mapping[str, Quantizer]) -> None:
    """
    Refuse layers that a policy of somebody's own uses past their forward, where they would compute in float.

    :raises ValueError: Naming the layer.
    """
    way_out = "Let the network call the layer, or name it in `exempt_layers` to leave it in float"
    for name in quantizers:
        if name in policy.structure.bypassed:
            raise ValueError(
                f"layer {name!r} cannot be quantized: its weight is used outside of its forward, in float. {way_out}"
            )
    if not policy.structure.is_strange:
        return
    with undisturbed_randomness(devices_of(policy)), th.no_grad():
        try:
            own = copied(policy)
            for name, quantizer in quantizers.items():
                own.sparsifier.set_quantizer(name, deepcopy(quantizer))
            own.set_training_mode(False)
            forward_all(own, to_tensor(own, sample(own.observation_space, N_SAMPLES)))
        except Exception:
            # Samples of its space are not what it was made for: what was seen at its creation has to do
            return
    for name in quantizers:
        if not own.sparsifier.layers[name].ran:
            raise ValueError(
                f"layer {name!r} cannot be quantized: its forward does not run when the policy decides and judges. {way_out}"
            )


def plan_quantization(policy: SparsePolicyMixin, config: QuantizationConfig) -> dict[str, Quantizer]:
    """
    Plan which layers are quantized, and how.

    :param policy: A sparse policy. Not changed.
    :param config: What to quantize and how finely.
    :return: A quantizer for every layer to quantize, by the layer's name.
    :raises ValueError: For unknown networks or layers, layers that cannot be quantized, sums that could overflow, and when
        nothing is left to quantize.
    """
    sparsifier = policy.sparsifier
    infos = [plan.info for plan in sparsifier.plan.values()]
    present = sparsifier.networks
    if config.networks is None:
        networks = [network for network in present if network in DEPLOYED_NETWORKS]
    else:
        networks = [config.networks] if isinstance(config.networks, str) else list(config.networks)
        for network in networks:
            if network not in present:
                raise ValueError(
                    f"`networks` names the unknown network {network!r}; the networks of this policy are: {', '.join(present)}"
                )
    # A deciding network is quantized as a whole, or what stays in float is named
    unsupported = {one.name: (one.network, one.kind) for one in policy.structure.left_out}
    exempt = select_layers(infos, config.exempt_layers, "exempt_layers", others=list(unsupported))
    for name, (network, kind) in unsupported.items():
        if network in networks and name not in exempt:
            raise ValueError(
                f"layer {name!r} of network {network!r} is a {kind}, which cannot be quantized: "
                f"only nn.Linear and nn.Conv2d can. Name it in `exempt_layers` to leave it in float"
            )
    observation_layers = _observation_layers(policy, infos)
    quantizers = {}
    for info in infos:
        if info.network in networks and info.name not in exempt:
            sees_observation = info.name in observation_layers
            layer = sparsifier.layers[info.name]
            quantizer = config.make_quantizer(layer, info.name, sees_observation=sees_observation)
            if sees_observation and _is_image_layer(policy, info.name):
                quantizer.set_range(0.0, 1.0)
                quantizer.freeze()
            quantizers[info.name] = quantizer
    if not quantizers:
        raise ValueError(
            f"nothing is left to quantize: `networks`={config.networks!r}, `exempt_layers`={config.exempt_layers!r}; "
            f"the layers of this policy are: {', '.join(sparsifier.layers)}"
        )
    _refuse_bypassed(policy, quantizers)
    return quantizers


def warn_of_coarse_features(policy: SparsePolicyMixin, quantizers: Mapping[str, Quantizer]) -> None:
    """
    Warn if rounding changes the weights of some feature of the observation much and those of others little.

    The weights of a row share one scale. Where features are of different sizes, so are the weights that multiply them, and a
    policy may lose a third of its return in 8 bits, see the guide to quantization.

    :param policy: The policy whose layers are to be quantized.
    :param quantizers: As :func:`plan_quantization` made them.
    """
    observed = _observation_layers(policy, [plan.info for plan in policy.sparsifier.plan.values()])
    for name, quantizer in quantizers.items():
        layer = policy.sparsifier.layers[name]
        if name not in observed or not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight.detach().float()
        size = weight.norm(dim=0)
        off = (quantizer.dequantized(weight) - weight).norm(dim=0) / size.clamp_min(1e-30)
        known = off[size > 0]
        if not len(known):
            continue
        worst, middle = float(known.max()), float(known.median())
        if worst > _COARSE and worst > _COARSER * middle:
            warnings.warn(
                f"layer {name!r}: {quantizer.weight_bits} bits change the weights of its input {int(off.argmax())} by "
                f"{worst:.0%}, those of the input in the middle by {middle:.1%}: the features of the observation differ in "
                "size. Normalise observations (VecNormalize; in rl-zoo3's YAML normalize: {norm_obs: true, norm_reward: "
                "false}), or leave the layer in float (`exempt_layers`='first')",
                UserWarning,
                stacklevel=3,
            )
