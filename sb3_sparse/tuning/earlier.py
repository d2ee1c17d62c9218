"""Studies of earlier versions, whose workers wrote the trainings that are reported into a study of their own."""

from __future__ import annotations

import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from sb3_sparse.runs.result import COMPLETE, Evaluation, RunResult
from sb3_sparse.runs.store import Store
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.study import REPORT_SUFFIX, Subject

_COSTS = ("flops", "bytes", "parameters", "latency", "sparsity", "dense_flops", "dense_bytes", "dense_parameters")


def import_reports(storage: BaseStorage, name: str, subject: Subject, store: Store) -> int:
    """
    Bring trainings of an earlier version into a store: those that were reported, and those of a one-line question.

    :param storage: The storage.
    :param name: Name of a study.
    :param subject: What the study is about.
    :param store: Gets the results, without the returns of single episodes, which nobody knows any more.
    :return: How many were brought.
    """
    n_new = 0
    for suffix in ("", REPORT_SUFFIX):
        if name + suffix not in optuna.get_all_study_names(storage):
            continue
        study = optuna.load_study(study_name=name + suffix, storage=storage)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            known = trial.user_attrs
            if "seed" not in known or "configuration" not in known or RETURN not in known:
                continue
            section = yaml.safe_load(known["configuration"])[subject.env]
            spec = subject.run(section, known["seed"], report=bool(suffix))
            if store.get(spec) is None:
                costs = {cost: known[cost] for cost in _COSTS if cost in known}
                evaluation = Evaluation(spec.n_timesteps, (known[RETURN],), (), {})
                note = {"note": "of a study of an earlier version: the return is the mean of the episodes"}
                store.put(RunResult(spec, COMPLETE, (evaluation,), costs, seconds=known["seconds"], versions=note))
                n_new += 1
    return n_new
