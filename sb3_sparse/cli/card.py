"""What ``sb3-sparse card`` does: a Hugging Face model card beside a saved model."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stdout
from pathlib import Path

from sb3_sparse.cli.progress import progress_bars
from sb3_sparse.conversion.loading import find_model_file, load_model
from sb3_sparse.export.card import Facts, model_card
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.episodes import episode_returns
from sb3_sparse.export.normalization import statistics_of
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import require_writable, write_text
from sb3_sparse.zoo.runs import find_zoo_run, make_training_env, require_fitting_env


def command_of(file: Path) -> str | None:
    """
    Find the command that trained a model.

    :param file: The model's zip.
    :return: The command as rl-zoo3 has written it down, without folders of programs; None if there is none.
    """
    found = sorted({*file.parent.glob("*/command.txt"), *file.parent.glob("command.txt")})
    if len(found) != 1:
        return None
    words = shlex.split(found[0].read_text())
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        words = words[1:]
    return shlex.join([Path(words[0]).name, *words[1:]]) if words else None


def latency_section(path: str, seed: int) -> str:
    """
    Measure latencies.

    :param path: The model.
    :param seed: Seed of the observations.
    :return: Tables and their command, Markdown.
    """
    from sb3_sparse.benchmark.__main__ import main

    arguments = ["latency", path, "--seed", str(seed)]
    printed = io.StringIO()
    with redirect_stdout(printed):
        main(arguments)
    return f"```bash\npython -m sb3_sparse.benchmark {shlex.join(arguments)}\n```\n\n{printed.getvalue()}"


def write_card(
    path: str | Path,
    output: str | Path | None = None,
    *,
    env: str | None = None,
    n_episodes: int = 10,
    seed: int = 0,
    latency: bool = False,
    licence: str | None = None,
    algorithm: str | None = None,
    force: bool = False,
) -> Path:
    """
    Write a model card.

    :param path: A model's zip, or a folder: the model saved there last.
    :param output: Where to; None: ``README.md`` beside the model.
    :param env: Environment; None: what rl-zoo3's folder says.
    :param n_episodes: Episodes to play, if the environment is known; 0 for none.
    :param seed: Their seed.
    :param latency: Whether to measure latencies too.
    :param licence: Name of a licence as Hugging Face has them.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param force: Whether what is there may be replaced.
    :return: The file.
    :raises ValueError: For mistakes in the arguments; nothing has been written then.
    """
    file = find_model_file(path)
    target = Path(output) if output is not None else file.with_name("README.md")
    require_writable("--output", target)
    if target.exists() and not force:
        raise ValueError(f"`--output` {target} exists: choose another name, or replace it with `--force`")
    require_integer("--episodes", n_episodes, low=0)
    require_integer("--seed", seed, low=0, high=2**32 - 1)
    run = find_zoo_run(file)
    env_id = env or run.env_id
    model = load_model(file, algorithm)
    normalize = statistics_of(run)
    decision = decision_of(model, normalize=normalize)  # says what cannot be exported before anything takes time
    returns: tuple[float, ...] = ()
    if env_id is not None and n_episodes:
        playground = make_training_env(run, env_id, 1, seed)
        require_fitting_env(model, playground, env_id)
        with progress_bars() as watch:
            returns = episode_returns(model, playground, n_episodes, maskable=decision.chooser is not None, watch=watch)
        playground.close()
    options = [] if env is None else ["--env", env]
    evaluation = ["sb3-sparse", "card", str(path), *options, "--episodes", str(n_episodes), "--seed", str(seed)]
    facts = Facts(
        file.name,
        file.stat().st_size,
        env_id,
        returns,
        shlex.join(evaluation),
        command_of(file),
        run.config,
        latency_section(str(path), seed) if latency else "",
        licence,
    )
    return write_text(target, model_card(model, facts, normalize))
