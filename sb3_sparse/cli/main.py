"""``sb3-sparse``: argument parsing only, each sub-command a thin call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_sparse.sweeps.arguments import add_compare_arguments, add_sweep_arguments
from sb3_sparse.tuning.arguments import add_tune_arguments, with_question
from sb3_sparse.utils.command_line import Parser, command

DESCRIPTION = "Sparse training for Stable-Baselines3"
EPILOG = """\
examples:
  sb3-sparse train --method rlx2 --algo td3 --env Hopper-v4 -n 100000 -P
  sb3-sparse report logs/td3
  sb3-sparse prune agent.zip --sparsity 0.9 --finetune 50000 --env Pendulum-v1
  sb3-sparse export agent.zip --to c --bits 8 --check
  sb3-sparse compare static rlx2 --env Pendulum-v1 --seeds 5
  sb3-sparse tune keep 0.97 --algo sac --env Pendulum-v1 -n 20000

exit codes:
  0   done
  1   something failed on the way
  2   the command line, a file or a package is wrong: one line says what
  75  a signal stopped the training after its checkpoint was written; --resume goes on
"""
ZOO_HELP = {
    "train": "train through rl-zoo3; --method NAME chooses a preset, --accelerate makes gradient steps of TD3, DDPG, SAC and "
    "DQN faster, --search NAMES says what --optimize searches, "
    "--checkpoint-every STEPS writes checkpoints and --resume RUN_FOLDER goes on from them, everything else is rl-zoo3's "
    "(-h lists it)",
    "enjoy": "evaluate an agent trained by train; everything is rl-zoo3's (-h lists it)",
}


def _sweep(arguments: argparse.Namespace) -> None:
    from sb3_sparse.sweeps.command import run_sweep

    run_sweep(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    from sb3_sparse.sweeps.command import run_compare

    run_compare(arguments)


def _report(arguments: argparse.Namespace) -> None:
    if arguments.html:
        from sb3_sparse.sweeps.command import write_html

        for file in write_html(Path(arguments.model)):
            print(f"written to {file}")
        return
    from sb3_sparse.analysis.report import sparsity_report
    from sb3_sparse.conversion.loading import find_model_file, load_model
    from sb3_sparse.conversion.untrusted import load_untrusted

    file = find_model_file(arguments.model)
    report = sparsity_report(
        load_model(file, arguments.algo) if arguments.allow_pickle else load_untrusted(file, algorithm=arguments.algo)
    )
    print({"table": report.__str__, "markdown": report.to_markdown, "json": report.to_json}[arguments.format]())


def _searches(arguments: argparse.Namespace) -> None:
    from sb3_sparse.tuning.spaces import searches_table

    print(searches_table())


def _sparsities(values: Sequence[str] | None) -> float | dict[str, float] | None:
    """``["0.9"]`` or ``["actor=0.9", "critic=0.8"]``."""
    if not values:
        return None
    pairs = [value.partition("=") for value in values]
    named = [bool(separator) for _, separator, _ in pairs]
    try:
        if named == [False]:
            return float(values[0])
        if all(named) and len({network for network, _, _ in pairs}) == len(pairs):
            return {network: float(value) for network, _, value in pairs}
    except ValueError:
        pass
    raise ValueError(f"`--sparsity` must be one number, or NETWORK=NUMBER for each network once, got {' '.join(values)!r}")


def _prune(arguments: argparse.Namespace) -> None:
    from sb3_sparse.analysis.report import sparsity_report
    from sb3_sparse.cli.prune import prune_file

    model, file = prune_file(
        arguments.model,
        arguments.output,
        sparsity=_sparsities(arguments.sparsity),
        distribution=arguments.distribution,
        pattern=arguments.pattern,
        dense_layers=arguments.dense_layers,
        scope=arguments.scope,
        algorithm=arguments.algo,
        finetune_steps=arguments.finetune,
        env=arguments.env,
        seed=arguments.seed,
        force=arguments.force,
        allow_pickle=arguments.allow_pickle,
    )
    print(sparsity_report(model))
    print(f"\nwritten to {file}")


def _export(arguments: argparse.Namespace) -> None:
    from sb3_sparse.cli.export import export_file
    from sb3_sparse.export import CheckFailedError

    try:
        exported = export_file(
            arguments.model,
            arguments.output,
            to=arguments.to,
            bits=arguments.bits,
            check=arguments.check,
            n_episodes=arguments.episodes,
            n_observations=arguments.observations,
            env=arguments.env,
            seed=arguments.seed,
            algorithm=arguments.algo,
            force=arguments.force,
            name=arguments.name,
            layout=arguments.layout,
            arduino=arguments.arduino,
            distribution=arguments.distribution,
        )
    except CheckFailedError as error:
        print(error.check)
        raise ValueError("the export does not decide as its model (see FAILED above), and nothing is written") from error
    if exported.check is not None:
        print(f"{exported.check}\n")
    print(f"written to {exported.path} ({exported.n_bytes:,} bytes)")


def _card(arguments: argparse.Namespace) -> None:
    from sb3_sparse.cli.card import write_card

    file = write_card(
        arguments.model,
        arguments.output,
        env=arguments.env,
        n_episodes=arguments.episodes,
        seed=arguments.seed,
        latency=arguments.latency,
        licence=arguments.license,
        algorithm=arguments.algo,
        force=arguments.force,
    )
    print(f"written to {file}")


def _tune(arguments: argparse.Namespace) -> None:
    from sb3_sparse.tuning.command import run

    run(arguments)


def _completion(arguments: argparse.Namespace) -> None:
    from sb3_sparse.cli.completion import completion_script

    print(completion_script(make_parser(), arguments.shell))


def _plot_compression(arguments: argparse.Namespace) -> None:
    from sb3_sparse.benchmark.plots import compression_table, plot_compression

    for file in plot_compression(arguments.files, arguments.output):
        print(f"written to {file}")
    if arguments.table:
        print(f"\n{compression_table(arguments.files)}")


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's zip, or a folder: the model saved in it last; rl-zoo3's statistics are found")
    parser.add_argument(
        "--to", choices=["packed", "onnx", "c", "cortex-m"], help="the format; found in OUT's ending if left out"
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="a file, or for C a folder; beside the model if left out")
    parser.add_argument("--bits", type=int, metavar="B", help="quantize to 2 to 8 bits; 16 rounds to float16 (packed alone)")
    parser.add_argument("--check", action="store_true", help="compare with the model first, and write nothing if it differs")
    parser.add_argument("--observations", type=int, default=2000, metavar="N", help="observations of each kind of a check")
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes of a check")
    parser.add_argument("--env", help="environment of a check; found in rl-zoo3's folder if left out")
    parser.add_argument("--seed", type=int, default=0, help="seed of a check and of --bits")
    parser.add_argument("--name", default="policy", help="what C's functions and files are called")
    layouts = ["fast", "small", "dense", "small-dense"]
    parser.add_argument("--layout", choices=layouts, help="C's tables: fast for a PC, small elsewhere; dense to compare with")
    parser.add_argument("--arduino", action="store_true", help="with --to c: an Arduino library")
    parser.add_argument("--distribution", action="store_true", help="mean and standard deviation too")
    parser.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.set_defaults(run=_export)


def _add_card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's zip, or a folder: the model saved in it last; rl-zoo3's files are found")
    parser.add_argument("-o", "--output", metavar="FILE", help="README.md beside the model if left out")
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes to play, 0 for none")
    parser.add_argument("--env", help="environment of the episodes; found in rl-zoo3's folder if left out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    parser.add_argument("--latency", action="store_true", help="measure how long a decision takes, too")
    parser.add_argument("--license", help="name of a licence as Hugging Face has them, for the header")
    parser.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.set_defaults(run=_card)


def _add_allow_pickle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="run what the file's pickles say, for policies and schedules of your own; only if you trust it",
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the arguments that are handed on to rl-zoo3."""
    parser = Parser(
        prog="sb3-sparse", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in ZOO_HELP.items():
        commands.add_parser(name, help=text, add_help=False)
    searches = commands.add_parser("searches", help="list what train --optimize --search can search")
    searches.set_defaults(run=_searches)
    report = commands.add_parser("report", help="say exactly what of a saved model is sparse")
    report.add_argument(
        "model", help="a model's zip, or a folder: the model saved in it last; with --html a sweep or a training"
    )
    report.add_argument(
        "--html", action="store_true", help="write the page of a sweep or a training: report.html in its folder"
    )
    report.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    report.add_argument("--format", choices=["table", "markdown", "json"], default="table")
    _add_allow_pickle(report)
    report.set_defaults(run=_report)
    prune = commands.add_parser("prune", help="prune a saved model, dense or sparse, by magnitude, and train it further")
    prune.add_argument("model", help="a model's zip, or a folder: the model saved in it last")
    prune.add_argument(
        "--sparsity", nargs="+", metavar="S", help="fraction of zero weights, or NETWORK=S for each network (actor=0.9 ...)"
    )
    prune.add_argument("--distribution", choices=["uniform", "er", "erk"], help="how it is spread over a network's layers")
    prune.add_argument("--pattern", help='"unstructured", "N:M" or "block:RxC"')
    prune.add_argument("--dense-layers", nargs="+", metavar="LAYER", help='"first", "last" or layer names: they stay dense')
    prune.add_argument("--scope", choices=["layer", "global"], default="layer", help="across what magnitudes are compared")
    prune.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    prune.add_argument("-o", "--output", metavar="OUT", help="the new model's zip; MODEL-pruned.zip if left out")
    prune.add_argument("--force", action="store_true", help="replace a file that is there")
    prune.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="STEPS",
        help="environment steps of further training; unpickles what rl-zoo3 left beside the model (statistics, replay buffer)",
    )
    prune.add_argument("--env", help="environment to train in; found in rl-zoo3's folder if left out")
    prune.add_argument("--seed", type=int, help="seed of the further training")
    _add_allow_pickle(prune)
    prune.set_defaults(run=_prune)
    _add_export_arguments(
        commands.add_parser("export", help="write a saved model down for a robot: packed, ONNX, C, Cortex-M")
    )
    _add_card_arguments(commands.add_parser("card", help="write a Hugging Face model card: report, sizes, returns, latency"))
    tune = commands.add_parser(
        "tune", help="search for sparse configurations: return against size as a Pareto front, or how sparse it can be"
    )
    add_tune_arguments(tune)
    tune.set_defaults(run=_tune)
    sweep = commands.add_parser("sweep", help="train a grid of methods, environments, sparsities and seeds, and report it")
    add_sweep_arguments(sweep)
    sweep.set_defaults(run=_sweep)
    compare = commands.add_parser("compare", help="train methods beside dense, test and draw: a sweep in one line")
    add_compare_arguments(compare)
    compare.set_defaults(run=_compare)
    plot = commands.add_parser("plot", help="figures of results, as PNG and SVG")
    figures = plot.add_subparsers(dest="figure", required=True)
    compression = figures.add_parser("compression", help="return against sparsity: pruned, quantized, both, and dense")
    compression.add_argument("files", nargs="+", metavar="CSV", help="written by python -m sb3_sparse.benchmark compression")
    compression.add_argument("-o", "--output", required=True, metavar="NAME", help="writes NAME.png and NAME.svg")
    compression.add_argument("--table", action="store_true", help="also print the numbers, as Markdown")
    compression.set_defaults(run=_plot_compression)
    completion = commands.add_parser("completion", help="print a script by which a shell completes this command")
    completion.add_argument("shell", choices=["bash", "zsh"], help="for which shell")
    completion.set_defaults(run=_completion)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Entry point of ``sb3-sparse``.

    :param arguments: Command line without the program; None for the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with command("sb3-sparse"):
        if arguments and arguments[0] in ZOO_HELP:
            from sb3_sparse.cli.zoo import run

            run(arguments[0], arguments[1:])
        else:
            if arguments[:1] == ["tune"]:
                arguments = ["tune", *with_question(arguments[1:])]
            parsed = make_parser().parse_args(arguments)
            parsed.run(parsed)
