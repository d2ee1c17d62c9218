"""The plan of a search and what drivers share, trainings made up; nothing looks at a study more often than it must."""

import time

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from sb3_sparse.runs import driver as drivers
from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.store import Store
from sb3_sparse.tuning import jobs, results, search, study
from tests.runs.subjects import MadeUp, make_result
from tests.tuning.subjects import make_subject


class NoLife(jobs.Jobs):
    """Nobody asks for signs of life in memory."""

    def _record_life(self):
        pass


@pytest.fixture(autouse=True)
def no_life(monkeypatch):
    monkeypatch.setattr(search, "Jobs", NoLife)


def make_plan(n_trials=3, subject=None, storage=None, driver=None):
    storage = InMemoryStorage() if storage is None else storage
    subject = subject or make_subject()
    found = study.open_study(storage, "study", subject, resume=True)
    return search.Search(found, storage, subject, study.search_jobs(n_trials), driver)


def by_sparsity(spec):
    """The sparser, the worse and the smaller."""
    sparsity = spec.section["policy_kwargs"]["sparsity"]
    sparsity = sparsity["actor"] if isinstance(sparsity, dict) else sparsity
    result = make_result(spec, -100 * sparsity - spec.seed)
    result.costs["bytes"] = 1000 * (1 - sparsity)
    return result


def work(plan, tmp_path, make=by_sparsity, **kwargs):
    engine = MadeUp(make, **kwargs)
    with Driver(Store(tmp_path), engine) as driver:
        driver.work(plan)
    return engine


def test_a_search_samples_trains_and_tells(tmp_path):
    plan = make_plan(subject=make_subject(seeds=2))
    engine = work(plan, tmp_path)
    rows = results.tried(plan.study)
    assert [row.is_dense for row in rows] == [True, False, False, False]
    assert all(row.state == "complete" for row in rows)
    assert len(engine.submitted) == 8
    for row, trial in zip(rows, plan.study.trials, strict=True):
        assert trial.user_attrs["returns"] == [row.mean + 0.5, row.mean - 0.5]
        assert trial.values == [row.mean, row.measures["bytes"]]
        assert results.section_of(plan.subject, row)["n_timesteps"] == 120
    assert rows[0].measures["bytes"] == 1000
    assert plan.counts() == (4, 0)
    # Once more there is nothing to do, and another budget goes on
    assert work(make_plan(3, plan.subject, plan.jobs.storage), tmp_path).submitted == []
    assert len(work(make_plan(5, plan.subject, plan.jobs.storage), tmp_path).submitted) == 4


def test_a_driver_that_is_gone_is_continued_with_the_same_samples_and_nothing_is_trained_twice(tmp_path):
    """And what comes after is what would have come: a sampler's seed is the trial's, not the process's."""
    straight = make_plan(4)
    work(straight, tmp_path / "straight", size=1)

    class Killed(BaseException):
        pass

    storage, trained = InMemoryStorage(), []

    def make(spec):
        trained.append(spec.key)
        if len(trained) == 3:
            raise Killed
        return by_sparsity(spec)

    with pytest.raises(Killed):
        work(make_plan(4, storage=storage), tmp_path / "killed", make, size=1)
    assert [trial.state for trial in make_plan(4, storage=storage).study.trials].count(TrialState.RUNNING) == 1
    plan = make_plan(4, storage=storage)
    engine = work(plan, tmp_path / "killed", size=1)
    assert [trial.params for trial in plan.study.trials] == [trial.params for trial in straight.study.trials]
    assert [trial.values for trial in plan.study.trials] == [trial.values for trial in straight.study.trials]
    assert [spec.key for spec in engine.submitted] == [trained[2], *(spec.key for spec in engine.submitted[1:])]
    assert not {spec.key for spec in engine.submitted[1:]} & set(trained)


def test_what_fails_is_told_and_not_fatal(tmp_path, monkeypatch):
    sample, n_calls = search.sample_next, []

    def failing(*arguments):
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyError("no such sample")
        return sample(*arguments)

    monkeypatch.setattr(search, "sample_next", failing)

    def make(spec):
        if not isinstance(spec.section["policy_kwargs"]["sparsity"], dict):
            return make_result(spec, state="diverged")
        return by_sparsity(spec) if len(n_calls) < 4 else make_result(spec, state="failed")

    plan = make_plan(4)
    work(plan, tmp_path, make, size=1)
    rows = results.tried(plan.study)
    assert [row.state for row in rows] == ["diverged", "complete", "failed", "complete", "failed"]
    assert rows[2].reason == "KeyError: 'no such sample'"
    assert rows[4].reason == "failed: made up"
    assert plan.counts() == (5, 3)


def test_a_storage_that_is_away_for_a_while_costs_nothing(tmp_path, monkeypatch):
    storage, naps = InMemoryStorage(), []
    plan = make_plan(1, storage=storage)
    write = storage.set_trial_user_attr

    def away(trial_id, key, value):
        if key == "returns" and len(naps) < 3:
            raise StorageInternalError("the server restarts")
        write(trial_id, key, value)

    monkeypatch.setattr(storage, "set_trial_user_attr", away)
    monkeypatch.setattr(drivers.time, "sleep", naps.append)
    work(plan, tmp_path)
    assert naps[:3] == [1, 5, 20]
    assert [trial.state for trial in plan.study.trials] == [TrialState.COMPLETE] * 2


def test_a_storage_that_fails_while_sampling_is_not_the_samples_fault(tmp_path, monkeypatch):
    plan = make_plan(1)

    def fail(*_):
        raise StorageInternalError("the server restarts")

    monkeypatch.setattr(search, "dense", fail)
    with pytest.raises(StorageInternalError):
        work(plan, tmp_path)
    assert plan.study.trials[0].state == TrialState.RUNNING


@pytest.mark.parametrize("driver", [None, "one-of-several"])
def test_while_trainings_last_nobody_looks_at_the_study(driver, tmp_path, monkeypatch):
    """Idle workers reloaded it twice a second; now none knows it, and the driver looks when something is over."""
    plan = make_plan(2, driver=driver)
    looks = []
    trials = plan.study.get_trials
    monkeypatch.setattr(
        plan.study, "get_trials", lambda *args, **kwargs: looks.append(time.monotonic()) or trials(*args, **kwargs)
    )
    while plan.next() is not None:
        pass
    n_looks = len(looks)
    for _ in range(100):
        assert plan.next() is None
        assert not plan.is_over
    assert len(looks) == n_looks
    # Where others work too, it looks again after a while
    monkeypatch.setattr(search, "LOOK_EVERY", 0.0)
    plan._claiming.begin()
    assert plan.next() is None
    assert len(looks) > n_looks


def test_drivers_share_a_search_and_its_report(tmp_path):
    """Two drivers take turns at one storage: every job is done by one of them, and both know every result."""
    search.LOOK_EVERY, before = 0.0, search.LOOK_EVERY
    try:
        storage = InMemoryStorage()
        plans = [make_plan(3, storage=storage, driver=name) for name in ("one", "two")]
        trained = [[], []]
        while not all(plan.is_over for plan in plans):
            for plan, mine in zip(plans, trained, strict=True):
                if (spec := plan.next()) is not None:
                    mine.append(spec.key)
                    plan.done(spec, by_sparsity(spec))
        assert [len(mine) for mine in trained] == [2, 2]
        assert len({*trained[0], *trained[1]}) == 4
        rows = results.tried(plans[0].study)
        assert [row.state for row in rows] == ["complete"] * 4
        subject, report = plans[0].subject, study.open_study(storage, "report", plans[0].subject, resume=True)
        specs = [spec for row in rows for spec in subject.reports(results.section_of(subject, row), 2)]
        own = [Driver(Store(tmp_path / name), MadeUp(by_sparsity)) for name in ("one", "two")]
        shared = [search.Shared(report, storage, subject, specs, name, mine) for name, mine in zip("ab", own, strict=True)]
        n_trained = [0, 0]
        while not all(plan.is_over for plan in shared):
            for index, plan in enumerate(shared):
                if (spec := plan.next()) is not None:
                    n_trained[index] += 1
                    result = by_sparsity(spec) if spec.seed % 2 else make_result(spec, state="diverged")
                    own[index].store.put(result)
                    plan.done(spec, result)
        assert n_trained == [4, 4]
        assert shared[0].results == shared[1].results
        assert own[0].store.results() == own[1].store.results()
        assert len(own[0].store.results()) == 8
        assert {trial.state for trial in report.get_trials()} == {TrialState.COMPLETE, TrialState.FAIL}
    finally:
        search.LOOK_EVERY = before


def test_earlier_studies_bring_their_reports_along(tmp_path):
    """The report of a study was a study, written by its workers."""
    from sb3_sparse.tuning.earlier import import_reports
    from sb3_sparse.tuning.files import as_yaml

    subject, storage, store = make_subject(), InMemoryStorage(), Store(tmp_path)
    report = optuna.create_study(storage=storage, study_name="study-report", directions=["maximize", "minimize"])
    measures = {**make_result(subject.run(subject.section, 0)).costs, "seconds": 3.0}
    attributes = {"job": "trial-2-seed-1000", "of": 2, "seed": 1000, "configuration": as_yaml(subject.env, subject.section)}
    known = {**measures, "return": -5.0, "returns": [-5.0]}
    report.add_trial(optuna.create_trial(values=[-5.0, 20.0], user_attrs={**attributes, **known}))
    report.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=attributes))
    assert import_reports(storage, "study-report", subject, store) == 1
    assert import_reports(storage, "study-report", subject, store) == 0
    assert import_reports(storage, "nothing", subject, store) == 0
    (result,) = store.results()
    assert (result.mean, result.spec) == (-5.0, subject.reports(subject.section, 1)[0])
    assert results.known(result)["latency"] == measures["latency"]


def test_studies_whose_presets_named_policies_by_other_addresses_go_on():
    subject = make_subject()
    earlier, now = (
        study.Subject.from_json({**subject.to_json(), "section": {**subject.section, "policy": policy}})
        for policy in ("sb3_sparse.SparseSACPolicy", "sb3_sparse.policies.SparseSACPolicy")
    )
    study.check_same(earlier.to_json(), "study", now)
    study.check_same(now.to_json(), "study", earlier)
    other = {**subject.to_json(), "section": {**subject.section, "policy": "sb3_sparse.SparseTD3Policy"}}
    with pytest.raises(ValueError, match=r"`section` .*SparseTD3Policy.*, not .*SparseSACPolicy"):
        study.check_same(other, "study", subject)
