"""
The latency of what was found, measured again when nothing else is being trained: beside other trainings it is
several times as long.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch as th

from sb3_sparse.conversion.loading import load_model
from sb3_sparse.runs.costs import latency
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.training import model_file
from sb3_sparse.runs.worker import threads
from sb3_sparse.utils.files import write_text


class Latencies:
    """
    Measured latencies, each once, in a file.

    :param store: Where the models lie.
    :param file: JSON file of what was measured.
    """

    def __init__(self, store: Store, file: Path) -> None:
        self.store, self.file = store, file
        try:
            self.known: dict[str, float] = json.loads(file.read_text())
        except (OSError, ValueError):
            self.known = {}

    def measure(self, specs: Iterable[RunSpec]) -> None:
        """
        Measure what is not known yet. No worker may be training meanwhile.

        :param specs: Trainings; one whose model is not here (another machine trained it) is left out.
        """
        missing = {spec.key: spec for spec in specs if spec.key not in self.known}
        before = th.get_num_threads()
        th.set_num_threads(threads())
        try:
            for key, spec in missing.items():
                model = model_file(self.store.path(spec), spec)
                if model.is_file():
                    self.known[key] = round(latency(load_model(model, spec.algo)), 2)
        finally:
            th.set_num_threads(before)
        if missing:
            write_text(self.file, json.dumps(self.known, indent=1) + "\n")

    def of(self, spec: RunSpec, measured: float) -> float:
        """
        Look one up.

        :param spec: A training.
        :param measured: What its worker measured.
        :return: Microseconds: what was measured here, else that.
        """
        return self.known.get(spec.key, measured)
