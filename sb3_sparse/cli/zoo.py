"""
rl-zoo3 with this plugin imported: ``sb3-sparse train --algo td3 --env Hopper-v4 --method static``.

Everything but ``--method``, ``--accelerate``, ``--search`` and what is about checkpoints is handed to rl-zoo3's own ``train``
and ``enjoy`` as it is, and ``--trial-id`` as the configuration of that trial.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stable_baselines3.common.utils import get_device

import sb3_sparse  # noqa: F401  # registers the policies
from sb3_sparse.accelerated.accelerate import STEPS
from sb3_sparse.cli.setup import refusing_setup
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.tuning.merge import algorithm_of, policy_of, supported_algorithms
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.command_line import Parser
from sb3_sparse.utils.files import make_folder, write_text
from sb3_sparse.zoo.environments import require_packages
from sb3_sparse.zoo.presets import preset_file
from sb3_sparse.zoo.sections import accelerated, as_yaml, check_hyperparameters, read_section, zoo_configuration

COMMANDS = ("train", "enjoy")
#: Where rl-zoo3's train puts its results. Its enjoy looks elsewhere, and downloads what it does not find there.
LOG_FOLDER = "logs"
#: The environment that rl-zoo3 takes if none is named.
_DEFAULT_ENV = "CartPole-v1"


def zoo_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """
    Turn this plugin's arguments into rl-zoo3's.

    :param command: ``"train"`` or ``"enjoy"``.
    :param arguments: Command line without program and command.
    :return: Command line for rl-zoo3's script.
    :raises ValueError: For an algorithm or method there is not, or ``--method`` together with ``--conf-file``.
    :raises ImportError: If a package that the environment needs is not installed, saying how to install it.
    """
    known, rest = _parse(command, arguments)
    if known.algo not in (supported := supported_algorithms()):
        raise ValueError(f"`--algo` {known.algo!r} is not supported; supported are: {', '.join(supported)}")
    result = ["--algo", known.algo]
    if known.env:
        require_packages(known.env)
        result += ["--env", known.env]
    result += rest
    if command == "enjoy":
        return [*result, "-f", known.folder or LOG_FOLDER]
    if known.method and known.conf_file:
        raise ValueError("`--method` chooses a configuration file, and `--conf-file` names one: give one of them")
    configuration = str(preset_file(known.method, known.algo)) if known.method else known.conf_file
    if known.optimize:
        result += ["-optimize"]
    for option in ("storage", "study_name"):
        if (value := getattr(known, option)) is not None:
            result += [f"--{option.replace('_', '-')}", value]
    if known.trial_id is not None:
        configuration = str(_trial_configuration(known, configuration))
    if configuration:
        result += ["-conf", configuration]
    if known.folder:
        result += ["-f", known.folder]
    return result


def add_preset_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add what ``train`` is told about presets and searches, beside rl-zoo3's arguments.

    :param parser: A parser of ``train``.
    """
    parser.add_argument("--method", metavar="NAME", help="preset, in place of a --conf-file: static, rlx2, ds, compress, ...")
    parser.add_argument("--accelerate", action="store_true", help="train() as a few native calls (TD3, DDPG, SAC, DQN)")
    parser.add_argument("--search", metavar="NAMES", help="what --optimize searches; sb3-sparse searches lists the names")


def own_help() -> str:
    """
    Describe the arguments of ``train`` that rl-zoo3 does not know.

    :return: A few lines, to stand above rl-zoo3's own help.
    """
    from sb3_sparse.cli.checkpoints import add_checkpoint_arguments

    parser = argparse.ArgumentParser(prog="sb3-sparse train", add_help=False, usage=argparse.SUPPRESS)
    options = parser.add_argument_group("options of sb3-sparse")
    add_preset_arguments(options)  # type: ignore[arg-type]  # a group has add_argument() too
    add_checkpoint_arguments(options)  # type: ignore[arg-type]
    return f"{parser.format_help().strip()}\n\nall others are rl-zoo3's:\n"


def _parse(command: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What of a command line is not handed on as it is, and the rest."""
    parser = Parser(prog=f"sb3-sparse {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-f", "--folder", "--log-folder")
    if command == "train":
        add_preset_arguments(parser)
        parser.add_argument("-optimize", "--optimize", "--optimize-hyperparameters", dest="optimize", action="store_true")
        parser.add_argument("--trial-id", type=int)
        parser.add_argument("--storage")
        parser.add_argument("--study-name")
    return parser.parse_known_args(list(arguments))


def _trial_configuration(known: argparse.Namespace, configuration: str | None) -> Path:
    """
    Write what a trial trained to a configuration file of its own in the log folder. rl-zoo3 ignores a ``--trial-id`` of 0, and
    merges others over a configuration that may have changed since.
    """
    from sb3_sparse.tuning.trials import found_section

    if known.storage is None or known.study_name is None:
        raise ValueError("`--trial-id` names a trial of a study: give its `--storage` and `--study-name` too")
    env = known.env or _DEFAULT_ENV
    section = found_section(
        (known.storage, known.study_name, known.trial_id),
        known.algo,
        env,
        lambda: read_section(configuration or zoo_configuration(known.algo), env),
    )
    folder = Path(known.folder or LOG_FOLDER) / known.algo
    file = folder / f"{re.sub(r'[^-.=0-9A-Za-z]+', '_', known.study_name)}_trial_{known.trial_id}.yml"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, as_yaml(env, section))
    print(f"Trial {known.trial_id} of {known.study_name} trains as in {file}")
    return file


def _section(arguments: Sequence[str], handed_on: Sequence[str]) -> dict[str, Any]:
    """
    What a training is configured with: the environment's section, and what the command line says instead.

    :raises ValueError: For a configuration, an agent or a device that there is not, values that cannot be read, and names
        that the algorithm does not know.
    """
    from rl_zoo3.utils import ALGOS, StoreDict

    known, _ = _parse("train", arguments)
    configuration = _parse("train", handed_on)[0].conf_file or zoo_configuration(known.algo)
    parser = Parser(prog="sb3-sparse train", add_help=False, allow_abbrev=False)
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict, default={})
    parser.add_argument("-n", "--n-timesteps", type=int, default=-1)
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("--device", default="auto")
    try:
        given = parser.parse_known_args(list(arguments))[0]
    except Exception as error:
        # rl-zoo3 evaluates values as Python, so anything may be raised
        raise ValueError(
            f"`--hyperparams` takes NAME:VALUE, the value as Python has it (learning_starts:1000): {error}"
        ) from error
    if given.trained_agent and not (given.trained_agent.endswith(".zip") and Path(given.trained_agent).is_file()):
        raise ValueError(f"`--trained-agent` {given.trained_agent} is no file that ends in .zip")
    try:
        get_device(given.device)
    except RuntimeError as error:
        raise ValueError(f"`--device` {given.device!r} is none that torch knows: auto, cpu, cuda, cuda:1, ...") from error
    if given.n_timesteps != -1:  # which is rl-zoo3's word for the configuration's own
        require_integer("--n-timesteps", given.n_timesteps, low=1)
    # As rl-zoo3 does
    steps = {"n_timesteps": given.n_timesteps} if given.n_timesteps > 0 else {}
    section = {**read_section(configuration, known.env or _DEFAULT_ENV), **given.hyperparams, **steps}
    check_hyperparameters(ALGOS[known.algo], section)
    return section


def _checked_searches(arguments: Sequence[str], handed_on: Sequence[str]) -> list[str] | None:
    """
    The names after ``--search``, once everything that rl-zoo3 would only find out after its first trials is known to be well.
    """
    known, _ = _parse("train", arguments)
    if not known.optimize:
        if known.search is not None:
            raise ValueError(f"`--search` {known.search!r} says what `--optimize` searches: give that too")
        return None
    from sb3_sparse.tuning.spaces import check_configuration, check_searches
    from sb3_sparse.tuning.trials import check_study, open_study
    from sb3_sparse.tuning.zoo import require_pandas

    require_pandas()
    if known.storage is not None and known.study_name is not None:
        # Whatever is not there yet, rl-zoo3 makes
        with suppress(FileNotFoundError, LookupError):
            check_study(open_study(known.storage, known.study_name), known.algo, known.env or _DEFAULT_ENV)
    if known.search is None:
        return None
    names = check_searches(known.search, known.algo)
    check_configuration(names, known.algo, _section(arguments, handed_on))
    return names


@contextmanager
def parsing_with(module: Any, kind: type[argparse.ArgumentParser]) -> Iterator[None]:
    """
    Inside, the parser that rl-zoo3's script makes, in a function, is of another class.

    :param module: The script's module.
    :param kind: The class.
    """
    stock = module.argparse
    module.argparse = SimpleNamespace(ArgumentParser=kind)
    try:
        yield
    finally:
        module.argparse = stock


def run(command: str, arguments: Sequence[str]) -> None:
    """
    Run rl-zoo3's script.

    :param command: ``"train"`` or ``"enjoy"``.
    :param arguments: Command line without program and command.
    :raises ImportError: If rl-zoo3 is not installed, saying how to install it.
    :raises ValueError: As in :func:`zoo_arguments`.
    """
    try:
        module = importlib.import_module(f"rl_zoo3.{command}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{command} needs rl-zoo3 ({error}): pip install 'sb3-sparse[zoo]'") from error
    with ExitStack() as contexts:
        is_training = command == "train"
        handed_on = _prepare_training(arguments, contexts) if is_training else zoo_arguments(command, arguments)
        contexts.enter_context(parsing_with(module, Parser))
        if is_training:
            known, _ = _parse("train", handed_on)
            log_folder = Path(known.folder or LOG_FOLDER)
            if log_folder.exists():
                make_folder("--log-folder", log_folder)
            contexts.enter_context(refusing_setup(module, log_folder, known.algo))
        own = sys.argv
        sys.argv = [f"sb3-sparse {command}", *handed_on]
        try:
            getattr(module, command)()
        except AssertionError as error:
            if is_training or "was not found" not in str(error):
                raise
            # A folder without such a run
            raise ValueError(error) from error
        finally:
            sys.argv = own


def _accelerated(arguments: Sequence[str], section: dict[str, Any]) -> list[str]:
    """
    A command line under which the section's training is accelerated.

    :raises ValueError: If it cannot be.
    """
    known, _ = _parse("train", arguments)
    if algorithm_of(known.algo) not in STEPS:
        names = ", ".join(algorithm.__name__ for algorithm in STEPS)
        raise ValueError(f"`--accelerate` knows the train() of {names}, not that of {known.algo}")
    # What a search samples may be sparse
    if not known.optimize and not issubclass(policy_of(known.algo, section.get("policy")), SparsePolicyMixin):
        raise ValueError(f"`--accelerate` is for sparse policies, got {section['policy']!r}: choose a --method that has one")
    parser = Parser(prog="sb3-sparse train", add_help=False, allow_abbrev=False)
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[])
    given, rest = parser.parse_known_args(list(arguments))
    return [*rest, "-params", *given.hyperparams, f"callback:{accelerated(section)['callback']!r}"]


def _prepare_training(arguments: Sequence[str], contexts: ExitStack) -> list[str]:
    """What rl-zoo3's train needs beside its arguments, and these."""
    from sb3_sparse.checkpoint.zoo import managing
    from sb3_sparse.cli.checkpoints import checkpoint_plan, resumed_command_line
    from sb3_sparse.tuning.zoo import register_searches, searching

    plan, rest = checkpoint_plan(arguments)
    contexts.enter_context(managing(plan))
    if plan.run is not None:
        return resumed_command_line(plan)
    handed_on = zoo_arguments("train", rest)
    if {"-h", "--help"} & set(rest):
        print(own_help())
    else:
        section = _section(rest, handed_on)
        if _parse("train", rest)[0].accelerate:
            handed_on = _accelerated(handed_on, section)
    register_searches()
    contexts.enter_context(searching(_checked_searches(rest, handed_on)))
    return handed_on
