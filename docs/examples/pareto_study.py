"""
Return against bytes as a Pareto front, from Python.

    python docs/examples/pareto_study.py [STEPS [TRIALS]]     # 2,000 steps, 8 trials: some minutes; writes the folder pareto
"""

import sys
from pathlib import Path

from sb3_sparse.tuning.front import find_front
from sb3_sparse.tuning.questions import FrontQuestion, Place

if __name__ == "__main__":  # workers import this file
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    trials = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    question = FrontQuestion(
        algo="sac",
        env="Pendulum-v1",
        steps=steps,
        objectives=["return", "bytes"],
        search=["sparsity", "distribution"],
        trials=trials,
        parameters={"learning_starts": min(300, steps // 2)},
    )
    find_front(question, Place(folder=Path("pareto")))
    print(Path("pareto/front.md").read_text())
