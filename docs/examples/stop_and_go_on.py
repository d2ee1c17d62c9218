"""
A training that is killed in the middle goes on as if nothing had happened, to the last bit.

    python docs/examples/stop_and_go_on.py [STEPS]     # 2,000 steps, a minute; writes the folder run
"""

import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import torch as th
from stable_baselines3 import SAC

import sb3_sparse

FOLDER = Path("run")


def train(steps, folder=None):
    model = SAC("SparseMlpPolicy", "Pendulum-v1", policy_kwargs=dict(sparsity=0.9), seed=0)
    callbacks = [sb3_sparse.RigL(every=100, drop_fraction=0.3)]
    if folder is not None:
        callbacks.append(sb3_sparse.RunCheckpoint(folder=folder, every=steps // 10))
    return model.learn(steps, callback=callbacks)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    unbroken = train(n)

    shutil.rmtree(FOLDER, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(target=train, args=(n, FOLDER))
    process.start()
    while process.is_alive() and len(list(FOLDER.glob("checkpoints/*/manifest.json"))) < 2:
        time.sleep(0.01)
    process.kill()  # SIGKILL: it can save nothing any more
    process.join()

    resumed = sb3_sparse.resume(FOLDER, "Pendulum-v1")
    ours, theirs = resumed.policy.state_dict(), unbroken.policy.state_dict()
    assert all(th.equal(ours[name], theirs[name]) for name in theirs)
    print(f"killed with exit code {process.exitcode}, resumed to step {resumed.num_timesteps}: every weight is the same")
