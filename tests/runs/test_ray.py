"""Trainings on a Ray cluster: a real one of two nodes, one of which is killed in the middle."""

import os
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.local import LocalEngine
from sb3_sparse.runs.store import Store
from tests.runs.subjects import make_result, make_spec

REPOSITORY = Path(__file__).parents[2]
ray = pytest.importorskip("ray")

from sb3_sparse.runs.ray_engine import RayEngine, train_remotely  # noqa: E402


def test_where_the_drivers_folder_is_not_seen_files_come_back(tmp_path, torch_engine):
    """And where it is seen, the task works there."""
    spec = make_spec(episodes=1)
    (tmp_path / "token").touch()
    here, nothing = train_remotely(spec, str(tmp_path / "here"), str(tmp_path / "token"), [])
    there, files = train_remotely(spec, str(tmp_path / "elsewhere"), str(tmp_path / "no-token"), [])
    assert nothing is None
    assert not (tmp_path / "elsewhere").exists()
    assert here.evaluations == there.evaluations
    assert {"sac.yml", "log.txt", "report.md", "sac/Pendulum-v1_1/Pendulum-v1.zip"} <= files.keys()
    assert (tmp_path / "here/sac.yml").read_bytes() == files["sac.yml"]


class FakeRay:
    """As much of Ray as the engine asks for."""

    class exceptions:
        WorkerCrashedError = type("WorkerCrashedError", (Exception,), {})
        NodeDiedError = OutOfMemoryError = ObjectLostError = WorkerCrashedError

    def __init__(self, outcome):
        self.outcome, self.cancelled, self.is_up = outcome, [], True

    def cluster_resources(self):
        return {"CPU": 2.0, "memory": 1.0}

    def cancel(self, task, force):
        self.cancelled.append(task)

    def shutdown(self):
        self.is_up = False


class FakeTask:
    def __init__(self, future):
        self._future = future

    def future(self):
        return self._future


@pytest.fixture
def engine(tmp_path):
    """An engine whose cluster is made up; its tasks end when the test says so."""
    made = RayEngine.__new__(RayEngine)
    made.ray, made.gym_packages, made._tasks, made.token = FakeRay(None), (), {}, tmp_path / "token"
    made.token.touch()
    futures = []

    class Remote:
        @staticmethod
        def remote(*_):
            futures.append(Future())
            return FakeTask(futures[-1])

    made._task = Remote()
    return made, futures


def test_results_files_and_failures_come_back(engine, tmp_path):
    made, futures = engine
    specs = [make_spec(seed) for seed in range(3)]
    assert made.size == 2
    results = []
    for spec in specs[:2]:
        assert made.has_room
        results.append(made.submit(spec, tmp_path / spec.key))
    assert not made.has_room
    futures[0].set_result((make_result(specs[0], 3.0), {"sac/a.zip": b"model"}))
    assert results[0].result().mean == 3.0
    assert (tmp_path / specs[0].key / "sac/a.zip").read_bytes() == b"model"
    assert made.has_room
    futures[1].set_exception(FakeRay.exceptions.WorkerCrashedError("gone"))
    assert made.vanished(results[1].exception())
    assert not made.vanished(ValueError("other"))
    made.submit(specs[2], tmp_path / specs[2].key)
    made.stop()
    assert (len(made.ray.cancelled), made.ray.is_up, made.token.exists()) == (1, False, False)


def test_an_address_without_a_cluster_is_an_error(tmp_path, monkeypatch):
    def init(**_):
        raise ConnectionError("ray cluster at 127.0.0.1:1 is\nnot there")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match=r"`--ray` 'auto' cannot be reached: ray cluster at 127\.0\.0\.1:1 is not there"):
        RayEngine("auto", tmp_path)
    # Nobody listens there: Ray is not asked, which would try for minutes
    monkeypatch.setattr(ray, "init", None)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "ray://no host:1"):
        with pytest.raises(ValueError, match=f"`--ray` '{address}' cannot be reached: "):
            RayEngine(address, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-sparse\[ray\]'"):
        RayEngine("auto", tmp_path)


@pytest.mark.expensive
def test_a_killed_node_costs_nothing(tmp_path, monkeypatch):
    """Two nodes of one core, one killed in mid-sweep: nothing is lost, and all is as on one machine, bit for bit."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
    specs = [make_spec(seed, checkpoints=(200,), n_timesteps=600) for seed in range(8)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    killed, submitted = [], []
    try:
        engine = RayEngine(cluster.address, Store(tmp_path / "ray").folder)
        submit = engine.submit
        engine.submit = lambda spec, folder: submitted.append(spec.seed) or submit(spec, folder)

        def watch(driver):
            # When both nodes are at work and something is done
            if not killed and len(driver.trained) >= 2 and len(driver.running) == 2:
                killed.append([one.spec.seed for one in driver.running])
                cluster.remove_node(node, allow_graceful=False)

        with Driver(Store(tmp_path / "ray"), engine, watch=watch) as driver:
            results = driver.run(specs)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert sorted(submitted) == list(range(8))
    assert [result.state for result in results] == ["complete"] * 8, [result.traceback for result in results]
    with Driver(Store(tmp_path / "local"), LocalEngine(1, tmp_path / "workers.log")) as driver:
        alone = driver.run(specs)
    for one, other in zip(results, alone, strict=True):
        assert one.evaluations == other.evaluations
    print(f"killed while {killed[0]} were trained; {time.strftime('%X')}")
