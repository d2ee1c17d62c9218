"""A worker whose trainings are naps: ``python -m tests.tuning.worker_stub STORAGE STUDY``."""

import os
import sys
import time

import optuna

from sb3_sparse.tuning.queue import claim
from sb3_sparse.tuning.storage import open_storage


def main(address: str, name: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(address)
    study = optuna.load_study(study_name=name, storage=storage)
    parent = os.getppid()
    while os.getppid() == parent:
        trial = claim(study, storage)
        if trial is None:
            time.sleep(0.05)
            continue
        x = trial.suggest_float("x", 0, 1)
        time.sleep(0.2)
        study.tell(trial, [x, -x])


if __name__ == "__main__":
    main(*sys.argv[1:])
