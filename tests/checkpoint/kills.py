"""
A driver that kills trainings. A training runs as a process, gets SIGKILL at some moment, goes on in another process, gets
SIGKILL again, and so on until it is through; then a hash of everything that it ends with is compared with that of the same
training that nobody killed. As a program it does so with many trainings and writes a table::

    python -m tests.checkpoint.kills --kills 10                # ten kills of each training
    python -m tests.checkpoint.kills --only "TD3, rlx2, Hopper-v4" --seed 7

A process is killed in one of three ways:

* at any moment: when it has had a random amount of processor time;
* in a write: at a random time after it has begun to write a checkpoint, by another thread;
* in an operation: at a random one of those that touch the disk, before it, after it, or with half a file written.

Processes are forked off this one, which has imported everything and made nothing, so that they begin in a moment; every
seventh is an interpreter of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch as th

from sb3_sparse import RunCheckpoint
from sb3_sparse.checkpoint import files
from sb3_sparse.checkpoint.store import FOLDER_NAME
from tests.checkpoint.subjects import Subject, finish

#: What the store does to the disk.
OPERATIONS = ("write_file", "sync_folder", "rename", "make_folder", "remove")
ANY_MOMENT, IN_A_WRITE, IN_AN_OPERATION = "any moment", "in a write", "in an operation"
WAYS = (ANY_MOMENT, IN_A_WRITE, IN_AN_OPERATION)
#: Parts of an operation.
PARTS = ("before", "half", "after")
#: About as many operations as a checkpoint takes, and seconds of processor time as an interpreter takes to import everything.
_OPERATIONS, _IMPORTS = 12, 3.0
#: Seconds after which a training hangs.
_HANGS = 900


def die_at_operation(operation: int, part: str) -> None:
    """
    Let this process kill itself at one of its operations on the disk.

    :param operation: Which, from 1 on.
    :param part: ``"before"`` it, ``"after"`` it, or ``"half"``: before it, or with half a file written.
    """
    done = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            dies = done == operation
            if dies and part != "after":
                if function is write and part == "half":
                    arguments[0].write_bytes(bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    write = files.write_file
    for name in OPERATIONS:
        setattr(files, name, wrapped(getattr(files, name)))


def die_in_write(checkpoint: int, share: float) -> None:
    """
    Let another thread of this process kill it while it writes a checkpoint.

    :param checkpoint: Which, from 1 on.
    :param share: When: as a share of what the one before took.
    """
    done, last = 0, 0.03
    written = RunCheckpoint._write

    def write(callback: RunCheckpoint) -> None:
        nonlocal done, last
        done += 1
        start = time.monotonic()
        if done == checkpoint:
            threading.Timer(share * last, os.kill, (os.getpid(), signal.SIGKILL)).start()
        written(callback)
        last = time.monotonic() - start

    sys.setswitchinterval(1e-5)
    RunCheckpoint._write = write  # type: ignore[method-assign]


DEATHS = {IN_A_WRITE: die_in_write, IN_AN_OPERATION: die_at_operation}


def train_here(subject: Subject, folder: Path, death: Sequence[Any] | None) -> None:
    """
    What the process of a training does.

    :param subject: The training.
    :param folder: Its folder; what it ends with goes there.
    :param death: One of :data:`DEATHS` and its arguments, None for a process that does not kill itself.
    """
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    if death is not None:
        DEATHS[death[0]](*death[1:])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(finish(subject, folder)))


class Process:
    """
    A training in a process of its own.

    :param subject: The training.
    :param folder: Its folder.
    :param death: See :func:`train_here`.
    :param fork: Whether it is forked off this process, or an interpreter of its own.
    """

    def __init__(self, subject: Subject, folder: Path, death: Sequence[Any] | None = None, *, fork: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        self.started = time.monotonic()
        self.code: int | None = None
        #: Processor time that it took, once it has ended.
        self.seconds = 0.0
        if not fork:
            given = json.dumps([asdict(subject), str(folder), death])
            with self.log.open("ab") as log:
                self.pid = subprocess.Popen(
                    [sys.executable, "-m", __spec__.name, "--train", given], stdout=log, stderr=log
                ).pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                log_file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log_file, 1)
                os.dup2(log_file, 2)
                train_here(subject, folder, death)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                # Nothing of this process's own is to be done at the end of another
                os._exit(status)

    def is_over(self) -> bool:
        """Whether it has ended, by whatever."""
        if self.code is None:
            self._ended(*os.wait4(self.pid, os.WNOHANG))
        return self.code is not None

    def wait(self, seconds: float = float("inf")) -> None:
        """
        Wait for the end of the process.

        :param seconds: Processor time that it may take.
        """
        while not self.is_over() and self._processor_time() < seconds:
            if time.monotonic() - self.started > _HANGS:
                self.kill()
                raise AssertionError(f"it hangs: {self.log.read_text()[-2000:]}")
            time.sleep(0.002)

    def _processor_time(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL, if it has not ended, and wait for its end."""
        if not self.is_over():
            os.kill(self.pid, signal.SIGKILL)
            self._ended(*os.wait4(self.pid, 0))

    def _ended(self, pid: int, status: int, used: Any) -> None:
        if pid:
            self.code, self.seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


@dataclass
class Outcome:
    """
    What came of a training that was killed.

    :param kills: How often, by how.
    :param processes: How many processes it took.
    :param with_checkpoint: How many of them went on from a checkpoint.
    :param torn: After how many kills something half-written lay in the folder.
    :param n_items: How many things were compared.
    :param differing: Those that are not as in the training that nobody killed.
    """

    kills: Counter = field(default_factory=Counter)
    processes: int = 0
    with_checkpoint: int = 0
    torn: int = 0
    n_items: int = 0
    differing: list[str] = field(default_factory=list)


def _half_written(folder: Path) -> bool:
    checkpoints = folder / FOLDER_NAME
    places = (checkpoints, checkpoints / "blobs")
    return any(path.name.startswith((".partial-", ".old-")) for place in places if place.is_dir() for path in place.iterdir())


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / FOLDER_NAME).glob("step-*"))


def run_unbroken(subject: Subject, folder: Path) -> tuple[dict[str, str], float]:
    """
    :param subject: A training.
    :param folder: Its folder.
    :return: What it ends with if nobody kills it, and how many seconds of processor time that takes.
    """
    process = Process(subject, folder)
    process.wait()
    assert process.code == 0, process.log.read_text()
    return json.loads((folder / "result.json").read_text()), process.seconds


def run_killed(subject: Subject, folder: Path, kills: int, seconds: float, draw: random.Random) -> Outcome:
    """
    Train, kill and go on, until the training is through.

    :param subject: A training.
    :param folder: Its folder.
    :param kills: How often to kill it; it may be through before.
    :param seconds: How much processor time it takes if nobody does.
    :param draw: Says when and how.
    :return: What came of it, nothing compared yet.
    """
    outcome = Outcome()
    n_checkpoints, first = subject.steps // subject.every, draw.randrange(len(WAYS))
    while True:
        assert outcome.processes < 10 * kills + 10, f"{folder}: no progress"
        n_killed = sum(outcome.kills.values())
        way = WAYS[(first + outcome.processes) % len(WAYS)] if n_killed < kills else None
        fork = outcome.processes % 7 != 6
        # A share of the training, so that there is something left to be killed again
        share = min(3 / max(kills - n_killed, 1), 0.7)
        until, death = float("inf"), None
        if way == ANY_MOMENT:
            until = draw.uniform(0, 0.5 + share) * seconds + (0 if fork else _IMPORTS)
        elif way == IN_A_WRITE:
            death = (way, draw.randint(1, max(round(share * n_checkpoints), 1)), draw.uniform(0, 1))
        elif way == IN_AN_OPERATION:
            death = (way, draw.randint(1, max(round(_OPERATIONS * share * n_checkpoints), 1)), draw.choice(PARTS))
        outcome.processes += 1
        outcome.with_checkpoint += _has_checkpoint(folder)
        process = Process(subject, folder, death, fork=fork)
        process.wait(until)
        process.kill()
        if process.code == -signal.SIGKILL:
            assert way is not None, "somebody else killed it"
            outcome.kills[way] += 1
            outcome.torn += _half_written(folder)
        elif process.code != 0:
            raise AssertionError(f"it ended with {process.code}: {process.log.read_text()[-3000:]}")
        else:
            return outcome


def check(subject: Subject, folder: Path, kills: int, seed: int) -> Outcome:
    """
    Kill a training, as often as it takes, and compare.

    :param subject: The training.
    :param folder: An empty folder.
    :param kills: How often to kill it, at least.
    :param seed: Of moments and ways.
    :return: What came of it.
    """
    draw = random.Random(f"{seed} {subject}")
    expected, seconds = run_unbroken(subject, folder / "whole")
    total, n_killed = Outcome(n_items=len(expected)), 0
    for attempt in range(3 * kills):
        killed = folder / f"killed-{attempt}"
        outcome = run_killed(subject, killed, kills - n_killed, seconds, draw)
        found = json.loads((killed / "result.json").read_text())
        names = expected.keys() | found.keys()
        total.differing += sorted(name for name in names if expected.get(name) != found.get(name))
        total.kills += outcome.kills
        for name in ("processes", "with_checkpoint", "torn"):
            setattr(total, name, getattr(total, name) + getattr(outcome, name))
        n_killed = sum(total.kills.values())
        if n_killed >= kills:
            return total
    raise AssertionError(f"{folder}: it is through before it can be killed")


def import_everything(folder: Path) -> None:
    """
    Import what a training imports on its way, so that processes that are forked off this one need not.

    :param folder: An empty folder.
    """
    names = folder / "modules.json"
    pid = os.fork()
    if pid == 0:
        try:
            for env in ("Hopper-v4", "CartPole-v1"):
                train_here(Subject("ppo", env, "rigl", steps=32, evaluate_every=16), folder / env, None)
            names.write_text(json.dumps(sorted(sys.modules)))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for name in json.loads(names.read_text()):
        with suppress(Exception):
            importlib.import_module(name)


# --- The trainings ---


def _subjects() -> dict[str, Subject]:
    found: dict[str, Subject] = {}
    for n_envs in (1, 4):
        several = {"n_envs": n_envs, "steps": 300 * (1 if n_envs == 1 else 2), "every": 25 * n_envs}
        for env in ("Hopper-v4", "Ant-v4", "Pendulum-v1"):
            found[f"TD3, rlx2, {env}, n_envs={n_envs}"] = Subject("td3", env, "rlx2", **several)
            found[f"SAC, ds, {env}, n_envs={n_envs}"] = Subject("sac", env, "ds", **several)
        for env in ("Hopper-v4", "Ant-v4", "Pendulum-v1", "CartPole-v1"):
            found[f"PPO, RigL, {env}, n_envs={n_envs}"] = Subject("ppo", env, "rigl", **several)
        # Pruned from a fifth to four fifths of the training, quantized for its last sixth
        dqn: dict[str, Any] = {**several, "steps": 360 * n_envs, "evaluate_every": 100 * n_envs}
        found[f"DQN, compress, CartPole-v1, n_envs={n_envs}"] = Subject("dqn", "CartPole-v1", "compress", **dqn)
    found["PPO, RigL, CartPole-v1, 2 processes"] = Subject(
        "ppo", "CartPole-v1", "rigl", n_envs=2, subprocesses=True, steps=600
    )
    return found


SUBJECTS = _subjects()
HEADER = ("training", "kills", *WAYS, "half-written files left", "went on from a checkpoint", "compared", "different")


def row(name: str, outcome: Outcome) -> list[str]:
    """A line of the table."""
    numbers = [sum(outcome.kills.values()), *(outcome.kills[way] for way in WAYS), outcome.torn, outcome.with_checkpoint]
    return [name, *map(str, [*numbers, outcome.n_items, len(outcome.differing)])]


def table(rows: list[list[str]]) -> str:
    """The table, in Markdown, with a sum of everything that can be added up."""
    sums = [str(sum(int(one[column]) for one in rows)) for column in range(1, len(HEADER))]
    lines = [HEADER, ["---"] + ["--:"] * (len(HEADER) - 1), *rows, ["all", *sums]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 1 if anything differs."""
    parser = argparse.ArgumentParser(description="Kill trainings, let them go on, and compare with those that nobody killed.")
    parser.add_argument("--kills", type=int, default=10, help="how often to kill each training")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="trainings whose names hold one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file for the table")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.train is not None:
        subject, folder, death = json.loads(known.train)
        train_here(Subject(**subject), Path(folder), death)
        return 0
    rows, differing = [], 0
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    import_everything(folder)
    for name, subject in SUBJECTS.items():
        if known.only is None or any(part in name for part in known.only):
            start = time.monotonic()
            outcome = check(subject, folder / name.replace(", ", "-"), known.kills, known.seed)
            rows.append(row(name, outcome))
            differing += len(outcome.differing)
            print(
                f"{name}: {dict(outcome.kills)}, {time.monotonic() - start:.0f} s, different: {outcome.differing}", flush=True
            )
            if known.output is not None:
                known.output.write_text(table(rows) + "\n")
    print(table(rows))
    if not differing:
        shutil.rmtree(folder)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
