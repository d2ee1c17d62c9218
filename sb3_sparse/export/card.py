"""A model card as Hugging Face has them: a header in YAML, then what a reader wants to know, every number with its command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.export.c.source import generate
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.exporter import provenance_of, report_of
from sb3_sparse.export.packed import pack
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.utils.markdown import markdown
from sb3_sparse_runtime.graph import Graph

_TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-sparse", "sparse")


@dataclass(frozen=True)
class Facts:
    """
    What a card says beside what the model itself says.

    :param file: Name of the model's file.
    :param n_bytes: Its bytes.
    :param environment: The environment, None if it is not known.
    :param returns: Returns of episodes, empty for none.
    :param evaluation: The command that plays them again.
    :param command: The command that trained the model, None if it is not known.
    :param hyperparameters: rl-zoo3's, empty if they are not known.
    :param latency: Tables of times, Markdown, and the command behind them.
    :param license: Name of a licence as Hugging Face has them, None for none.
    """

    file: str
    n_bytes: int
    environment: str | None = None
    returns: Sequence[float] = ()
    evaluation: str = ""
    command: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    latency: str = ""
    license: str | None = None


def sizes(model: BaseAlgorithm, graph: Graph, facts: Facts) -> list[tuple[str, int]]:
    """
    Measure how large the policy is in each form.

    :param model: The model.
    :param graph: Its decision.
    :param facts: What else is known.
    :return: Names and bytes.
    """
    n_numbers = sum(layer.weight.size + (0 if layer.bias is None else layer.bias.size) for layer in graph.layers)
    return [
        (f"`{facts.file}`: everything that training goes on from", facts.n_bytes),
        ("the acting networks' weights and biases as dense float32", 4 * n_numbers),
        ("packed policy (`.sb3s`): header, indices, scales and checksum included", len(pack(graph, report_of(model), {}))),
        ("tables of generated C, the smallest", generate(graph, layout="small").table_bytes),
    ]


def _header(name: str, facts: Facts, origin: Mapping[str, Any]) -> str:
    found: dict[str, Any] = {"library_name": "stable-baselines3", "tags": list(_TAGS)}
    if facts.license is not None:
        found["license"] = facts.license
    if facts.environment is not None:
        found["tags"].append(facts.environment)
    if facts.environment is not None and len(facts.returns):
        value = f"{np.mean(facts.returns):.2f} +/- {np.std(facts.returns):.2f}"
        result = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": facts.environment, "type": facts.environment},
            "metrics": [{"type": "mean_reward", "value": value, "name": "mean_reward", "verified": False}],
        }
        found["model-index"] = [{"name": origin["algorithm"], "results": [result]}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False)}---\n\n# {name}\n"


def _summary(graph: Graph, origin: Mapping[str, Any]) -> str:
    n_weights = sum(layer.weight.size for layer in graph.layers)
    n_zero = n_weights - sum(int(np.count_nonzero(layer.weight)) for layer in graph.layers)
    bits = sorted({layer.bits for layer in graph.layers})
    precision = "float32" if bits == [32] else f"{' and '.join(map(str, bits))} bits"
    return (
        f"A {origin['algorithm']} policy after {origin['timesteps']:,} steps. {n_zero / n_weights:.1%} of the {n_weights:,} "
        f"weights that choose actions are zero; weights are {precision}."
    )


def _usage(facts: Facts, algorithm: str, module: str) -> str:
    stem = Path(facts.file).stem
    return (
        "## Use\n\n```python\nimport sb3_sparse  # registers the sparse policies\n"
        f'from {module} import {algorithm}\n\nmodel = {algorithm}.load("{facts.file}")\n```\n\n'
        "Without torch and Stable-Baselines3, after `sb3-sparse export "
        f"{facts.file} --to packed`:\n\n```python\nfrom sb3_sparse_runtime import load_policy\n\n"
        f'policy = load_policy("{stem}.sb3s")\naction, _ = policy.predict(observation)\n```\n'
    )


def _return(facts: Facts) -> str:
    if not len(facts.returns):
        return "## Return\n\nNot measured.\n"
    said = f"{np.mean(facts.returns):.2f} +/- {np.std(facts.returns):.2f}"
    return (
        f"## Return\n\n{said} (mean and standard deviation) in {len(facts.returns)} episodes of {facts.environment}, "
        f"deterministic actions:\n\n```bash\n{facts.evaluation}\n```\n"
    )


def model_card(model: BaseAlgorithm, facts: Facts, normalize: VecNormalize | None = None) -> str:
    """
    Write a model card.

    :param model: The model.
    :param facts: What else is known.
    :param normalize: Statistics of its observations, None for none.
    :return: The card, Markdown with a header in YAML.
    :raises ValueError: If the model cannot be exported.
    """
    origin = provenance_of(model)
    graph = decision_of(model, normalize=normalize)
    algorithm = origin["algorithm"]
    module = type(model).__module__.split(".")[0]
    place = f" on {facts.environment}" if facts.environment is not None else ""
    parts = [
        _header(f"Sparse {algorithm}{place}", facts, origin),
        _summary(graph, origin) + "\n",
        _usage(facts, algorithm, module),
        _return(facts),
    ]
    if isinstance(policy_of(model), SparsePolicyMixin):
        parts.append(f"## Sparsity\n\n{sparsity_report(model).to_markdown()}")
    measured = [(name, f"{n_bytes:,}") for name, n_bytes in sizes(model, graph, facts)]
    parts.append(f"## Size\n\n{markdown(['what', 'bytes'], measured)}")
    if facts.latency:
        parts.append(f"## Latency\n\n{facts.latency.rstrip()}\n")
    made = {"steps": f"{origin['timesteps']:,}", "seed": origin["seed"]}
    made |= {name: origin[name] for name in ("sb3_sparse", "stable_baselines3", "torch")}
    training = "## Training\n\n"
    if facts.command is not None:
        training += f"```bash\n{facts.command}\n```\n\n"
    training += markdown(["", ""], [(name, str(value)) for name, value in made.items()])
    if facts.hyperparameters:
        rows = [(f"`{name}`", f"`{value}`") for name, value in facts.hyperparameters.items()]
        training += f"\n{markdown(['hyperparameter', 'value'], rows)}"
    parts.append(training)
    return "\n".join(parts)
