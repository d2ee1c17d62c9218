"""
The latency of what was found, measured again when nothing else is being trained: beside other trainings it is
several times as long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch as th

from sb3_sparse.conversion.loading import load_model
from sb3_sparse.runs.costs import latency
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.training import model_file
from sb3_sparse.runs.worker import threads
from sb3_sparse.utils.files import write_text


def quiet_latencies(store: Store, file: Path, wanted: Mapping[int, Sequence[RunSpec]]) -> dict[int, float]:
    """
    Measure latencies, each once. No worker may be training meanwhile.

    :param store: Where the models lie.
    :param file: JSON file of what was measured.
    :param wanted: For each trial trainings of its configuration, the model of one of which is measured.
    :return: Microseconds by trial; one whose models are all on other machines is left out.
    """
    try:
        known: dict[str, float] = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    n_known, n_threads, found = len(known), th.get_num_threads(), {}
    th.set_num_threads(threads())
    try:
        for number, specs in wanted.items():
            for spec in sorted(specs, key=lambda spec: spec.key not in known):
                model = model_file(store.path(spec), spec)
                if spec.key not in known and model.is_file():
                    known[spec.key] = round(latency(load_model(model, spec.algo)), 2)
                if spec.key in known:
                    found[number] = known[spec.key]
                    break
    finally:
        th.set_num_threads(n_threads)
    if len(known) > n_known:
        write_text(file, json.dumps(known, indent=1) + "\n")
    return found
