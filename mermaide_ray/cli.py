"""The command line: parses, calls, nothing else. Ray and Torch are imported only by the commands that compute."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from mermaide_ray import __version__
from mermaide_ray.errors import InputError, RunFault

if TYPE_CHECKING:
    from mermaide_ray.experiment import Experiment

INTERRUPTED = 130

_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Parser(argparse.ArgumentParser):
    """Mistakes on the command line are input errors like any other: one line. Flags are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 1 for a fault of the run, 2 for bad input, 130 if interrupted."""
    args = argparse.Namespace(command=None)
    try:
        args = _parser().parse_args(argv)
        if getattr(args, "address", None):
            os.environ["RAY_ADDRESS"] = args.address  # read by `ray.init`, here and in the baselines' processes
        args.call(args)
        sys.stdout.flush()
    except (InputError, RunFault) as error:
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader (`| head`) has left; the interpreter's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RunFault.exit_code
    except OSError as error:
        return _failed(str(error), RunFault.exit_code)
    except KeyboardInterrupt as interruption:
        goes_on = args.command in ("sweep", "stackelberg")
        how = str(interruption) or ("the same command goes on with it" if goes_on else "")
        print(f"mermaide: interrupted{how and f'; {how}'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _failed(message: str, code: int) -> int:
    print(f"mermaide: error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mermaide",
        description="Meta-trains principals that steer learners which they never met, and scores them.",
    )
    parser.add_argument("--version", action="version", version=f"mermaide {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    # In this order `mermaide --help` lists them.
    _add_train(commands)
    _add_evaluate(commands)
    _add_stock_ppo(commands)
    _add_export(commands)
    _add_sweep(commands)
    _add_tensorboard(commands)
    _add_schema(commands)
    _add_report(commands)
    _add_stackelberg(commands)
    _add_config(commands)
    _add_cluster(commands)
    _add_lists(commands)
    return parser


def _add_train(commands: _Commands) -> None:
    train = commands.add_parser("train", help="meta-train a principal, then score it beside baselines")
    _add_settings(train)
    _add_seed(train)
    train.add_argument("--out", type=_folder, metavar="DIR", help="new folder for the run's results")
    train.add_argument("--resume", type=_folder, metavar="DIR", help="go on with the run in DIR, with its own settings")
    _add_trust(train, "with --resume: ")
    train.add_argument(
        "--baseline",
        action="append",
        metavar="PRESET",
        help="learned baseline to train beside, with the same agents and budget; repeatable",
    )
    _add_address(train)
    train.set_defaults(call=_train)


def _add_evaluate(commands: _Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score a trained principal on agents that it never met")
    evaluate.add_argument("checkpoint", type=_folder, help="run folder, checkpoint or exported principal")
    evaluate.add_argument("--k", type=_at_least(0), nargs="+", metavar="K", help="numbers of adaptation episodes")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    evaluate.add_argument("--tasks", type=_at_least(1), metavar="N", help="agents to meet")
    evaluate.add_argument("--episodes", type=_at_least(1), metavar="N", help="query episodes per agent and K")
    evaluate.add_argument("--out", type=_folder, metavar="DIR", help="folder for rows and figures")
    _add_overrides(evaluate)
    evaluate.set_defaults(call=_evaluate)


def _add_stock_ppo(commands: _Commands) -> None:
    stock = commands.add_parser("stock-ppo", help="train RLlib's own PPO as the principal, and score it: a baseline")
    _add_settings(stock)
    _add_seed(stock)
    stock.add_argument("--network", choices=("lstm", "mlp"), default="lstm", help="default: lstm; mlp: no memory")
    stock.add_argument("--out", type=_folder, metavar="DIR", help="new folder for the run's results")
    _add_address(stock)
    stock.set_defaults(call=_stock_ppo)


def _add_export(commands: _Commands) -> None:
    export = commands.add_parser("export", help="write a principal as safetensors + JSON, to share")
    export.add_argument("checkpoint", type=_folder, help="run folder or checkpoint")
    export.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder to write")
    export.set_defaults(call=_export)


def _add_sweep(commands: _Commands) -> None:
    sweep = commands.add_parser("sweep", help="answer a question: train and score all that a sweep file asks for")
    sweep.add_argument("config", type=Path, nargs="?", metavar="FILE", help="such as tune_configs/cost.yaml")
    sweep.add_argument("--scale", choices=("smoke", "laptop", "full"), help="size of the sweep; default: laptop")
    _add_overrides(sweep)
    sweep.add_argument(
        "--out",
        metavar="DIR",
        help="folder or URI (s3://…) of the results; default: runs/NAME-SCALE (runs/NAME where FILE has no scales)",
    )
    sweep.add_argument("--storage", metavar="DIR", help="folder or URI in which to make NAME-SCALE, in place of runs")
    sweep.add_argument("--resume", metavar="DIR", help="go on with the sweep in DIR (so does the same command again)")
    sweep.add_argument(
        "--principals",
        action="append",
        default=[],
        type=_folder,
        metavar="DIR",
        help="another sweep: its finished runs with the same settings are scored, not trained again; repeatable",
    )
    sweep.add_argument("--dry-run", action="store_true", help="list the trials, their steps and time; start nothing")
    sweep.add_argument("--no-report", action="store_true", help="end without the report (mermaide report DIR makes it)")
    _add_trust(sweep)
    _add_address(sweep)
    sweep.set_defaults(call=_sweep)


def _add_tensorboard(commands: _Commands) -> None:
    tensorboard = commands.add_parser("tensorboard", help="watch runs and sweeps in the browser, with TensorBoard")
    tensorboard.add_argument("folders", nargs="+", metavar="DIR", help="run, sweep, or folder of such")
    tensorboard.add_argument("--port", type=_at_least(0), metavar="N", help="default: 6006 or the next that is free")
    tensorboard.set_defaults(call=_tensorboard)


def _add_schema(commands: _Commands) -> None:
    schema = commands.add_parser("schema", help="print the JSON Schema of a sweep file, for editors")
    schema.add_argument("--markdown", action="store_true", help="print all keys of settings and sweeps as tables")
    schema.set_defaults(call=_schema)


def _add_report(commands: _Commands) -> None:
    report = commands.add_parser("report", help="turn sweeps and runs into a report: answer, tables, figures")
    report.add_argument(
        "folders", type=_folder, nargs="+", metavar="DIR", help="sweep's or run's; several are compared"
    )
    report.add_argument(
        "--out",
        type=_folder,
        metavar="DIR",
        help="folder for it; default: report in DIR, of several report_with_… in the first",
    )
    report.set_defaults(call=_report)


def _add_stackelberg(commands: _Commands) -> None:
    stackelberg = commands.add_parser(
        "stackelberg",
        help="experiment: commit against unknown followers, meta-learned against from scratch",
    )
    stackelberg.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    stackelberg.add_argument("--scale", choices=("smoke", "laptop", "full"), default="laptop", help="default: laptop")
    _add_overrides(stackelberg)
    stackelberg.add_argument(
        "--out", type=_folder, metavar="DIR", help="folder for the results; one that is there already is gone on with"
    )
    stackelberg.set_defaults(call=_stackelberg)


def _add_config(commands: _Commands) -> None:
    config = commands.add_parser("config", help="print the whole effective config, each setting explained")
    _add_settings(config)
    config.set_defaults(call=_config)


def _add_cluster(commands: _Commands) -> None:
    cluster = commands.add_parser("cluster", help="check a cluster's file before it starts machines")
    checks = cluster.add_subparsers(dest="job", required=True, metavar="JOB", parser_class=_Parser)
    check = checks.add_parser("check", help="find what is wrong with FILE, offline; exit code 2 if anything is")
    check.add_argument("file", type=Path, metavar="FILE", help="YAML for `ray up` or KubeRay, such as cluster/aws.yaml")
    check.set_defaults(call=_cluster_check)


def _add_lists(commands: _Commands) -> None:
    agents = commands.add_parser("agents", help="list the agent families and their hyperparameters")
    agents.add_argument("--check", metavar="MODULE:NAME", help="play a family of your own, say what is wrong")
    agents.set_defaults(call=_agents)
    commands.add_parser("envs", help="list the environments").set_defaults(call=_envs)
    baselines = commands.add_parser("baselines", help="list the fixed rules, oracles and learned variants")
    baselines.set_defaults(call=_baselines)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("--preset", metavar="NAME", help="start from a preset (`mermaide baselines` lists them)")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, such as training.meta_lr=1e-3; repeatable",
    )


def _add_trust(parser: argparse.ArgumentParser, when: str = "") -> None:
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help=f"{when}unpickle checkpoints that others may have written, which runs their code",
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_at_least(0), metavar="N", help="training seed (the same as --set seed=N)")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        type=_address,
        metavar="auto|HOST:PORT",
        help="Ray cluster to run on (auto: the one of this machine); default: RAY_ADDRESS, else Ray is started here",
    )


def _address(text: str) -> str:
    if text != "auto" and (":" not in text or text.startswith("http")):
        raise argparse.ArgumentTypeError(
            f"must be auto, HOST:PORT or ray://HOST:PORT, got {text!r} (a dashboard's address is for `ray job submit`)"
        )
    return text


def _folder(text: str) -> Path:
    # As a path it would be made here, below a folder `s3:`.
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"must be a folder on this machine, got {text!r} (`mermaide sweep` alone takes URIs)"
        )
    return Path(text)


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return whole


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    from mermaide_ray.config_file import parse_override

    seed = {"seed": args.seed} if getattr(args, "seed", None) is not None else {}
    return dict(parse_override(text) for text in args.set) | seed


def _experiment(args: argparse.Namespace, preset: str | None = None) -> Experiment:
    from mermaide_ray.experiment import load_experiment

    if args.config:
        _check_kind(args.config, of_sweep=False)
    return load_experiment(args.config, args.preset or preset, _overrides(args))


def _check_kind(config: Path, of_sweep: bool) -> None:
    """Refuses a sweep as settings, and settings as a sweep, for what they are rather than for their first key."""
    from mermaide_ray.config_file import read_yaml
    from mermaide_ray.experiment import Experiment

    keys = read_yaml(config).keys()
    is_sweep = not keys.isdisjoint(("question", "extends"))
    if is_sweep and not of_sweep:
        raise InputError(
            f"--config must be a file of settings, got {config}, a sweep's (mermaide sweep {config} runs it)"
        )
    if of_sweep and not is_sweep and not keys.isdisjoint(Experiment.model_fields.keys() - {"name", "preset"}):
        raise InputError(
            f"a sweep must ask a `question`, got {config}, a file of settings (mermaide train --config {config} takes "
            "it)"
        )


def _train(args: argparse.Namespace) -> None:
    from mermaide_ray.baselines import BASELINES
    from mermaide_ray.experiment import load_preset
    from mermaide_ray.storage import RunDirectory, refuse_used, what_is

    for preset in args.baseline or ():
        if preset in BASELINES:
            raise InputError(f"--baseline must name a preset to train beside, got {preset}, which is always scored")
        load_preset(preset, where="--baseline")
    if args.resume is None:
        experiment = _experiment(args)
        if args.out:
            refuse_used(args.out)  # here too: Torch and Ray take seconds to import
    else:
        given = [name for name in ("config", "preset", "set", "seed", "out") if getattr(args, name) not in (None, [])]
        if given:
            raise InputError(f"--resume must stand without --{given[0]}: the run keeps the settings in its config.yaml")
        if not (args.resume / "config.yaml").is_file():
            raise InputError(
                "--resume must be the folder of a run (it holds a config.yaml), "
                f"got {args.resume}{what_is(args.resume)}"
            )
        experiment = RunDirectory(args.resume).experiment()
    from mermaide_ray.training import train

    train(
        experiment,
        out=args.resume or args.out,
        baselines=args.baseline,
        resume=args.resume is not None,
        trusted=args.trust_checkpoint,
    )


def _check_places(checkpoint: Path, out: Path | None) -> None:
    """Refuses them before Torch and Ray are imported, which takes seconds."""
    from mermaide_ray.storage import load_principal, refuse_used

    if not checkpoint.exists():
        raise InputError(f"the checkpoint must exist, got {checkpoint}")
    load_principal(checkpoint)
    if out:
        refuse_used(out)


def _evaluate(args: argparse.Namespace) -> None:
    _check_places(args.checkpoint, args.out)
    from mermaide_ray.training import evaluate

    evaluate(
        args.checkpoint,
        ks=args.k,
        split=args.split,
        tasks=args.tasks,
        episodes=args.episodes,
        out=args.out,
        overrides=_overrides(args),
    )


def _stock_ppo(args: argparse.Namespace) -> None:
    from mermaide_ray.storage import refuse_used

    # Nothing of ours is trained: the preset that plays every game.
    experiment = _experiment(args, preset=None if args.config else "mermaide")
    if args.out:
        refuse_used(args.out)
    from mermaide_ray.baselines.stock_run import train_stock

    train_stock(experiment, args.network, args.out)


def _export(args: argparse.Namespace) -> None:
    _check_places(args.checkpoint, args.out)
    from mermaide_ray.training import export

    export(args.checkpoint, out=args.out)


def _sweep(args: argparse.Namespace) -> None:
    from mermaide_ray.sweep.file import SWEEP_FILE, default_scale, load_sweep, read_sweep
    from mermaide_ray.sweep.store import Store, below

    if args.resume:
        given = [name for name in ("config", "scale", "set", "out", "storage") if getattr(args, name)]
        if given:
            without = "FILE" if given[0] == "config" else f"--{given[0]}"
            raise InputError(f"--resume must stand without {without}: the sweep keeps what its {SWEEP_FILE} says")
        where = below(args.resume, SWEEP_FILE)
        sweep, root = read_sweep(Store(args.resume).read_text(SWEEP_FILE, "the folder of a sweep"), where), args.resume
    elif args.config is None:
        raise InputError("a sweep must be given as FILE, or with --resume DIR, got neither (see mermaide sweep --help)")
    else:
        _check_kind(args.config, of_sweep=True)
        where, sweep = str(args.config), load_sweep(args.config, args.scale, _overrides(args))
        scale = args.scale or default_scale(args.config)
        name = f"{sweep.name}-{scale}" if scale else sweep.name
        root = args.out or below(args.storage or "runs", name)
    if args.out and args.storage:
        raise InputError("--storage must stand without --out, which names the folder itself")
    from mermaide_ray.sweep.job import dry_run, run_sweep

    if args.dry_run:
        dry_run(sweep, where, args.principals)
        return
    run_sweep(sweep, where, root, not args.no_report, args.principals, args.trust_checkpoint)


def _tensorboard(args: argparse.Namespace) -> None:
    from mermaide_ray.monitor import monitor

    monitor(args.folders, args.port)


def _schema(args: argparse.Namespace) -> None:
    import json

    from mermaide_ray.reference import markdown
    from mermaide_ray.sweep.file import schema

    if args.markdown:
        print(markdown(), end="")
        return
    print(json.dumps(schema(), indent=1))


def _report(args: argparse.Namespace) -> None:
    for folder in args.folders:
        if not folder.is_dir():
            raise InputError(f"a report needs the folder of a sweep or a run, got {folder}, which is none")
    if args.out and args.out.is_file():
        raise InputError(f"--out must be a folder, got {args.out}, a file")
    from rich.console import Console

    from mermaide_ray.progress import tell
    from mermaide_ray.report.document import write_report

    tell(Console(), write_report(args.folders, args.out).summary())


def _stackelberg(args: argparse.Namespace) -> None:
    from mermaide_ray.stackelberg.settings import load_settings

    if args.config:
        _check_kind(args.config, of_sweep=False)
    settings = load_settings(args.config, args.scale, _overrides(args))
    from mermaide_ray.stackelberg.experiment import run

    run(settings, args.out or Path("runs") / f"stackelberg-{args.scale}")


def _config(args: argparse.Namespace) -> None:
    from mermaide_ray.config_file import explained_yaml

    print(explained_yaml(_experiment(args)), end="")


def _cluster_check(args: argparse.Namespace) -> None:
    from mermaide_ray.cluster_check import check

    findings = check(args.file)
    for finding in findings:
        print(finding)
    if findings:
        raise InputError(f"{args.file} must be right in every point, got {len(findings)} that are not (above)")
    print(f"{args.file}: nothing to find fault with")


def _agents(args: argparse.Namespace) -> None:
    if args.check is not None:
        from mermaide_ray.agents.contract import PULLS, check_named

        remark = check_named(args.check)
        print(f"{args.check}: nothing to find fault with in {PULLS} pulls{f', but {remark}' if remark else ''}")
        return
    from mermaide_ray.agents import ALL_FAMILIES

    for name, family in ALL_FAMILIES.items():
        print(f"{name}: {family.description}")
        for key, hyperparameter in family.hyperparameters.items():
            print(f"    {key}: {hyperparameter.meaning} [{hyperparameter.low:g}, {hyperparameter.high:g}]")


def _envs(args: argparse.Namespace) -> None:
    from mermaide_ray.envs import ENVS

    _print_table({name: game.description for name, game in ENVS.items()})


def _baselines(args: argparse.Namespace) -> None:
    from mermaide_ray.baselines import BASELINES
    from mermaide_ray.experiment import preset_description, preset_names

    _print_table({name: baseline.description for name, baseline in BASELINES.items()})
    print("\nLearned variants (--preset, --baseline):")
    _print_table({name: preset_description(name) for name in preset_names()})


def _print_table(rows: Mapping[str, str]) -> None:
    width = max(map(len, rows))
    for name, description in rows.items():
        print(f"{name:{width}}  {description}")
