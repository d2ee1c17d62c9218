"""The plan of a search and what drivers share, trainings made up; nothing looks at a study more often than it must."""

import time
from dataclasses import replace

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


@pytest.fixture(autouse=True)
def no_life(monkeypatch):
    """Nobody asks for signs of life in memory."""
    monkeypatch.setattr(jobs.Jobs, "_record_life", lambda self: None)


def make_plan(n_trials=3, subject=None, storage=None, driver=None):
    storage = InMemoryStorage() if storage is None else storage
    subject = subject or make_subject()
    found = study.open_study(storage, "study", subject, resume=True)
    return search.Search(found, storage, subject, n_trials, driver)


def by_sparsity(spec):
    """The sparser, the worse and the smaller."""
    sparsity = spec.section["policy_kwargs"]["sparsity"]
    sparsity = sparsity["actor"] if isinstance(sparsity, dict) else sparsity
    result = make_result(spec, -100 * sparsity - spec.seed)
    result.costs["bytes"] = 1000 * (1 - sparsity)
    return result


def work(plan, tmp_path, make=by_sparsity, engine=MadeUp, **kwargs):
    engine = engine(make, **kwargs)
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
        assert trial.user_attrs["returns"] == [row.tuned + 0.5, row.tuned - 0.5]
        assert trial.values == [row.tuned, row.measures["bytes"]]
        assert row.section["n_timesteps"] == 120
    assert rows[0].measures["bytes"] == 1000
    assert plan.counts() == (4, 0)
    # Once more there is nothing to do, and another budget goes on
    assert work(make_plan(3, plan.subject, plan.storage), tmp_path).submitted == []
    assert len(work(make_plan(5, plan.subject, plan.storage), tmp_path).submitted) == 4


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


@pytest.mark.parametrize("driver", [None, "one-of-several"])
def test_interruptions_are_no_attempts(driver, tmp_path):
    """Ctrl-C, SIGTERM and a closed terminal: a trial that is stopped more often than it may be tried is not given up."""
    storage, trained = InMemoryStorage(), []

    class Interrupted(MadeUp):
        def submit(self, spec, folder):
            trained.append(spec.key)
            if len(trained) <= 2 * drivers.MAX_ATTEMPTS:
                raise KeyboardInterrupt
            return super().submit(spec, folder)

    for _ in range(2 * drivers.MAX_ATTEMPTS):
        plan = make_plan(1, storage=storage, driver=driver)
        with pytest.raises(KeyboardInterrupt):
            work(plan, tmp_path, engine=Interrupted)
        plan.close()
        assert plan.counts() == (0, 0)
    work(make_plan(1, storage=storage, driver=driver), tmp_path, engine=Interrupted)
    assert [trial.state for trial in plan.study.trials] == [TrialState.COMPLETE] * 2
    assert len(set(trained[: 2 * drivers.MAX_ATTEMPTS])) == 1


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
    given = []
    while (spec := plan.next()) is not None:
        given.append(spec)
    n_looks = len(looks)
    for _ in range(100):
        assert plan.next() is None
        assert not plan.is_over
    assert len(looks) == n_looks
    # Where others work too, it looks again after a while
    monkeypatch.setattr(jobs, "LOOK_EVERY", 0.0)
    plan._next_look = 0.0
    assert plan.next() is None
    assert len(looks) > n_looks
    # And where its own are over it does not wait
    monkeypatch.setattr(jobs, "LOOK_EVERY", 1e9)
    assert plan.next() is None
    for spec in given:
        plan.done(spec, by_sparsity(spec))
    assert plan.next() is None
    assert plan.is_over


def test_drivers_share_a_search_and_its_report(tmp_path, monkeypatch):
    """Two drivers take turns at one storage: every job is done by one of them, and both know every result."""
    monkeypatch.setattr(jobs, "LOOK_EVERY", 0.0)
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
    specs = [spec for row in rows for spec in subject.reports(row.section, 2)]
    own = [Driver(Store(tmp_path / name), MadeUp(by_sparsity)) for name in ("one", "two")]
    shared = [search.Shared(report, storage, subject, specs, name) for name in "ab"]
    n_trained = [0, 0]
    while not all(plan.is_over for plan in shared):
        for index, plan in enumerate(shared):
            if (spec := plan.next()) is not None:
                n_trained[index] += 1
                result = by_sparsity(spec) if spec.seed % 2 else make_result(spec, state="diverged")
                own[index].store.put(result)
                plan.done(spec, result)
    assert n_trained == [4, 4]
    found = [plan.results(mine.store) for plan, mine in zip(shared, own, strict=True)]
    assert found[0] == found[1]
    assert [result.spec for result in found[0]] == specs
    assert own[0].store.results() == own[1].store.results()
    assert len(own[0].store.results()) == 8
    assert {trial.state for trial in report.get_trials()} == {TrialState.COMPLETE, TrialState.FAIL}


def test_earlier_studies_bring_their_reports_along(tmp_path):
    """The report of a study was a study, written by its workers."""
    from sb3_sparse.tuning.earlier import import_reports
    from sb3_sparse.zoo.sections import as_yaml

    subject, storage, store = make_subject(), InMemoryStorage(), Store(tmp_path)
    report = optuna.create_study(storage=storage, study_name="study-report", directions=["maximize", "minimize"])
    measures = {**make_result(subject.run(subject.section, 0)).costs, "seconds": 3.0}
    attributes = {"job": "trial-2-seed-1000", "of": 2, "seed": 1000, "configuration": as_yaml(subject.env, subject.section)}
    known = {**measures, "return": -5.0, "returns": [-5.0]}
    report.add_trial(optuna.create_trial(values=[-5.0, 20.0], user_attrs={**attributes, **known}))
    report.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=attributes))
    assert import_reports(storage, "study", subject, store) == 1
    assert import_reports(storage, "study", subject, store) == 0
    assert import_reports(storage, "nothing", subject, store) == 0
    (result,) = store.results()
    assert (result.mean, result.spec) == (-5.0, subject.reports(subject.section, 1)[0])
    assert results.known(result)["latency"] == measures["latency"]


def test_studies_whose_presets_named_policies_by_other_addresses_go_on():
    subject = make_subject()
    earlier, now, other = (
        replace(subject, section={**subject.section, "policy": f"sb3_sparse.{policy}"})
        for policy in ("SparseSACPolicy", "policies.SparseSACPolicy", "SparseTD3Policy")
    )
    for first, second in ((earlier, now), (now, earlier)):
        study.check_same(study.open_study(InMemoryStorage(), "study", first, resume=False), second)
    with pytest.raises(ValueError, match=r"`section` .*SparseTD3Policy.*, not .*SparseSACPolicy"):
        study.check_same(study.open_study(InMemoryStorage(), "study", other, resume=False), subject)


def test_what_no_driver_can_finish_is_a_failure_and_no_wait_for_ever(tmp_path):
    """Drivers vanish with it three times: whoever is left goes on without."""
    storage, subject = InMemoryStorage(), make_subject()
    found = study.open_study(storage, "report", subject, resume=True)
    specs = subject.reports(subject.section, 1)
    plan = search.Shared(found, storage, subject, specs, "me")
    for _ in range(3):
        storage.set_trial_state_values(plan.claim()._trial_id, state=TrialState.FAIL)
        plan._mine.clear()
    assert plan.next() is None
    assert plan.is_over
    (result,) = plan.results(Store(tmp_path))
    assert (result.state, result.reason) == ("failed", "its driver vanished 3 times")


def test_retry_does_again_what_has_failed_with_the_same_sample(tmp_path):
    """And neither what diverged nor what is complete; on a server one of the drivers does it."""
    states = iter(["complete", "failed", "diverged", "complete"])
    plan = make_plan(3)
    work(plan, tmp_path / "first", lambda spec: make_result(spec, state=next(states)), size=1)
    assert [row.state for row in results.tried(plan.study)] == ["complete", "failed", "diverged", "complete"]
    drivers = [make_plan(3, storage=plan.storage, driver=name) for name in ("one", "two")]
    for mine in drivers:
        assert mine.next() is None
    # At the same moment: the second one lists its trial before it sees the first one's
    seen = drivers[1].study.get_trials(deepcopy=False)
    drivers[0].look(retry=True)
    drivers[1].study.get_trials, look = lambda **_: seen, drivers[1].study.get_trials
    drivers[1].look(retry=True)
    drivers[1].study.get_trials = look
    for mine in drivers:
        work(mine, tmp_path / "second")
    rows = results.tried(plan.study)
    assert [row.state for row in rows] == ["complete", "diverged", "complete", "complete"]
    trials = plan.study.trials
    assert [trial.state for trial in trials[4:]] == [TrialState.COMPLETE, TrialState.WAITING]
    assert trials[4].params == trials[1].params
    assert trials[4].user_attrs["configuration"] == trials[1].user_attrs["configuration"]
    assert "reason" not in trials[4].user_attrs
