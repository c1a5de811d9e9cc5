"""`swt`: a planning agent for foreign exchange that trains and trades on an ordinary CPU box.  The command line."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from host import VERSION
from host.commands.reading_flags import with_reading_flags
from host.stop import EX_TEMPFAIL, install_signal_handlers

HERE = Path(__file__).parent  # a folder, or the packed program
PACKED = HERE.is_file()
DEFAULT_MODEL = HERE / "model.swt" if PACKED else Path("runs/latest/model.swt")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def print_settings(context: typer.Context, is_asked: bool) -> None:
    """Print the settings that `--set` takes here, and end."""
    if is_asked:
        from host.config import Config, LiveConfig
        from host.settings import settings_text

        sys.stdout.write(settings_text(LiveConfig() if context.info_name in ("act", "backtest") else Config()))
        raise typer.Exit


def print_version(is_asked: bool) -> None:
    """Print the version and the digest of all code that a decision is made by, as `act` and `doctor` do; and end."""
    if is_asked:
        from kernels.jit import module_digest

        print(f"swt {VERSION}, {module_digest('kernels.live.policy_step')}")
        raise typer.Exit


CsvArgument = Annotated[Path | None, typer.Argument(help="A file of bars; by default the bundled EURUSD H1 of 2017.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads; 0 = all cores.  The result is the same.")]
RayOption = Annotated[
    str | None, typer.Option(metavar="auto|HOST:PORT", help="Compute on a Ray cluster: one that runs, else one here.")
]
ActorsOption = Annotated[
    int | None, typer.Option(min=1, help="Processes on the Ray cluster at most; default: its CPUs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ModelOption = Annotated[Path, typer.Option(help="The model.swt that `train` wrote.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings.")]
InsistOption = Annotated[
    bool, typer.Option("--insist", help="Trade a feed of another instrument or price scale than the model's.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting: section.key=value; repeatable.")]
LOOKAHEAD_HELP = "Prove that no feature, decision or fit depends on a later bar; exit 9 where one does."
WARMUP_HELP = "Prove that no feature or decision depends on a bar before the warm-up; exit 9 where one does."
HelpConfigOption = Annotated[
    bool, typer.Option("--help-config", is_eager=True, callback=print_settings, help="List the settings, and end.")
]


@app.callback()
def swt(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version, and end.")
    ] = False,
) -> None:
    """A planning agent for foreign exchange that trains and trades on an ordinary CPU box."""


@app.command(hidden=PACKED)
@with_reading_flags
def train(
    reading: Any,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CSV...", help="Files of bars, folders and patterns; by default the bundled EURUSD H1 of 2017."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/0001 and on, runs/latest.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.001, help="Stop after so many minutes (default 2.5).")] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            "--episodes", "--sessions", min=1, help="Stop after this many episodes: the same bytes each time."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many updates of the weights: the same bytes each time.")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations in a row without a better one; keep that.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or the latest.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard too.")] = False,
    threads: ThreadsOption = 0,
    memory: Annotated[
        str | None, typer.Option(help="Memory to keep within, as 4GB: prints the plan.  The result is the same.")
    ] = None,
    ray: RayOption = None,
    actors: ActorsOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random draw.")] = None,
    env: Annotated[str | None, typer.Option(help="Learn an environment instead: a Gymnasium id, module:Class.")] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    help_config: HelpConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an agent on files of bars, of one instrument or of several, and test it on their later bars."""
    install_signal_handlers(EX_TEMPFAIL)
    from host.commands.train import TrainOptions
    from host.commands.train_env import base_config, train_any
    from host.commands.training_spec import run_to_resume
    from host.config import load_config
    from host.training.trainer import Budget

    overrides = [*(settings or []), *([f"train.seed={seed}"] if seed is not None else [])]
    out, stored = run_to_resume(out) if resume else (out, None)
    chosen = load_config(config, overrides, stored or base_config(env))
    limits = Budget(minutes, episodes, steps), resume, thread_count(threads), tensorboard, early_stopping, memory
    options = TrainOptions(out, *limits, ray, actors, env)
    document = train_any(files or [], reading, chosen, options)
    if as_json:
        print(json.dumps(document))


@app.command(hidden=PACKED)
@with_reading_flags
def backtest(
    reading: Any,
    csv: CsvArgument = None,
    model: ModelOption = DEFAULT_MODEL,
    start: Annotated[
        str | None, typer.Option("--from", help="Close of the first bar to decide at; UTC without a zone.")
    ] = None,
    decisions: Annotated[Path | None, typer.Option(help="Write every decision to this CSV file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report, its tables and report.html here.")] = None,
    guards: Annotated[bool, typer.Option("--guards", help="Apply the risk limits of `act` too.")] = False,
    insist: InsistOption = False,
    config: ConfigOption = None,
    settings: SetOption = None,
    help_config: HelpConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Trade a file of bars with a model, and report net pips, how sure they are, and what policies without one earn."""
    from host.commands.backtest import backtest_csv
    from host.config import LiveConfig, apply_overrides

    risk = apply_overrides(LiveConfig(), config, settings).risk if guards or config or settings else None
    backtest_csv(csv, model, reading, start, decisions, as_json=as_json, risk=risk, insist=insist, report_folder=report)


@app.command("report", hidden=PACKED)
def make_report(
    run: Annotated[Path, typer.Argument(help="A folder of `train`, or of `backtest --report`.")],
    png: Annotated[Path | None, typer.Option(help="Write a picture of the page too; it takes a browser.")] = None,
    width: Annotated[int, typer.Option(min=320, help="Of the picture, pixels.")] = 1400,
) -> None:
    """Make report.html again from the files beside it."""
    from host.commands.report import remake_report

    remake_report(run, png, width)


@app.command(hidden=PACKED)
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of `train` or `walkforward`.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default curves.html in the run, of several in this folder.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the page too; it takes a browser.")] = None,
) -> None:
    """Draw the learning curves of runs beside each other on a page."""
    from host.commands.plot import plot_runs

    plot_runs(runs, out, png)


@app.command(hidden=PACKED)
def init(
    file: Annotated[Path | None, typer.Argument(help="The file; by default swt.toml, with --live live.toml.")] = None,
    live: Annotated[bool, typer.Option("--live", help="The settings of `act` and `backtest --guards`.")] = False,
) -> None:
    """Write a file of all settings at their defaults, with what each does, for --config."""
    from host.commands.init import init_config

    init_config(file or Path("live.toml" if live else "swt.toml"), live)


@app.command(hidden=PACKED)
@with_reading_flags
def walkforward(
    reading: Any,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with it.")],
    csv: Annotated[
        list[Path] | None, typer.Argument(help="Files of bars, folders and patterns; each file is a market.")
    ] = None,
    folds: Annotated[int, typer.Option(min=1, help="Trainings one after the other, each tested on what follows.")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each fold; the median one counts.")] = 3,
    minutes: Annotated[float | None, typer.Option(min=0.001, help="Minutes of training in all (default 20).")] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of each training, instead: the same bytes each time.")
    ] = None,
    rolling: Annotated[bool, typer.Option("--rolling", help="Train on the latest bars only, not on all.")] = False,
    open_holdout: Annotated[bool, typer.Option("--open-holdout", help="Test on the last bars too, once.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="Trainings at once; 0 = all cores.")] = 0,
    ray: RayOption = None,
    actors: ActorsOption = None,
    task: Annotated[
        int | None, typer.Option(min=0, help="Run each N-th training from this one, and judge nothing.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="N: so many tasks, 0 to N - 1, share --out.")] = 1,
    config: ConfigOption = None,
    settings: SetOption = None,
    help_config: HelpConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train anew on every fold of files of bars, trade what follows, and judge whether it earns anything."""
    if (task or 0) >= tasks or (task is None and tasks > 1) or (task is not None and open_holdout):
        raise typer.BadParameter("--task I --tasks N: I is 0 to N - 1; the command without them opens the holdout")
    install_signal_handlers(EX_TEMPFAIL)
    from host.commands.walkforward import WalkOptions, print_walkforward, walkforward_csv
    from host.config import load_config

    tests, count = (rolling, open_holdout), thread_count(threads)
    options = WalkOptions(out, folds, seeds, minutes, episodes, *tests, count, ray, actors, task, tasks)
    document = walkforward_csv(csv or [], reading, load_config(config, settings), options)
    if as_json:
        print(json.dumps(document))
    elif task is None:
        print_walkforward(document, sys.stdout)


@app.command()
@with_reading_flags
def act(
    reading: Any,
    feed: Annotated[str, typer.Argument(help="A file of closed bars, or - for stdin.")],
    model: ModelOption = DEFAULT_MODEL,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more bars at the end of the file.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for target.csv, heartbeat.json and journal.jsonl.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Let bridges trade the target in --out.")] = False,
    insist: InsistOption = False,
    lift_halt: Annotated[bool, typer.Option("--lift-halt", help="Resume after a halt by losses.")] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
    help_config: HelpConfigOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decide at each closed bar of a feed; with --out, publish a target within risk limits."""
    from host.commands.act import act_on_feed, new_live_options

    options = new_live_options(feed, out, live, reading.symbol, lift_halt, config, settings)
    act_on_feed(feed, model, reading, follow, sys.stdout, as_json, options, insist)


@app.command()
def replay(
    journal: Annotated[Path, typer.Argument(help="The journal.jsonl of `act --out`.")],
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Decide again at each bar of a journal; exit 9 where a decision differs."""
    from host.commands.replay import replay_journal as run

    run(journal, model, sys.stdout, as_json)


@app.command(hidden=PACKED)
@with_reading_flags
def compare(
    reading: Any,
    journal: Annotated[Path, typer.Argument(help="The journal.jsonl of `act --out`.")],
    csv: Annotated[Path, typer.Argument(help="A file of the same bars.")],
    model: ModelOption = DEFAULT_MODEL,
    insist: InsistOption = False,
    as_json: JsonOption = False,
) -> None:
    """Explain where live decisions differ from the backtest of a file; exit 9 where one does."""
    from host.commands.compare import compare_journal, print_comparison

    end_with(compare_journal(journal, csv, model, reading, insist), print_comparison, as_json)


@app.command("check-warmup", help=WARMUP_HELP, hidden=PACKED)
@app.command("check-lookahead", help=LOOKAHEAD_HELP, hidden=PACKED)
@with_reading_flags
def check_dependence(
    context: typer.Context,
    reading: Any,
    csv: CsvArgument = None,
    model: ModelOption = DEFAULT_MODEL,
    checks: Annotated[int, typer.Option(min=1, help="Bars drawn.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bars drawn.")] = 0,
    insist: InsistOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that features and decisions depend on no bar that they must not; exit 9 where one does."""
    from host.commands.check_lookahead import check_model, print_check

    warmup = context.info_name == "check-warmup"
    end_with(check_model(csv, model, reading, checks, seed, insist, warmup), print_check, as_json)


@app.command(hidden=PACKED)
def pack(
    model: ModelOption = DEFAULT_MODEL, out: Annotated[Path, typer.Option(help="The file to write.")] = Path("swt.pyz")
) -> None:
    """Pack a model and all that acting needs into one file: `python swt.pyz act FEED`."""
    from host.commands.pack import pack as run

    run(model, out)


@app.command()
def doctor(model: ModelOption = DEFAULT_MODEL, as_json: JsonOption = False) -> None:
    """Check whether this machine is fit to act, and compile the kernels of `act`."""
    from host.commands.doctor import doctor as run
    from host.commands.doctor import print_doctor

    end_with(run(model), print_doctor, as_json)


@app.command("data-check", hidden=PACKED)
@with_reading_flags
def data_check(
    reading: Any,
    files: Annotated[list[Path], typer.Argument(help="Files of bars, folders and patterns.")],
    as_json: JsonOption = False,
) -> None:
    """Show how files of bars are read, their faults, and the flags for what they leave open."""
    from host.commands.data_check import check_histories, print_check

    documents = check_histories(files, reading)
    if as_json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents))
    else:
        for document in documents:
            print_check(document, sys.stdout)
    if any(document["refused"] for document in documents):
        raise typer.Exit(4)


@app.command(hidden=PACKED)
def selftest(
    market: Annotated[
        list[str] | None,
        typer.Argument(help="noise planted leak (default) planted-hard close memory delayed jumps sparse stale risk."),
    ] = None,
    half_life: Annotated[float | None, typer.Option(help="Bars in which a deviation of `planted` halves.")] = None,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of a move, pips.")] = None,
    cost: Annotated[float | None, typer.Option(help="Spread, in standard deviations of a move.")] = None,
    length: Annotated[int | None, typer.Option(help="Bars; the last quarter is the test.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.001, help="Minutes of training for each market.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the market and of the training.")] = 0,
    threads: ThreadsOption = 0,
    train_bars: Annotated[int | None, typer.Option(help="Training bars, instead of three quarters of all.")] = None,
    instruments: Annotated[
        int, typer.Option(min=1, max=100, help="Markets of each kind, of other paths and sizes, that one agent learns.")
    ] = 1,
    picture: Annotated[Path | None, typer.Option(help="Write the equity beside the optimum's to this SVG.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.jsonl, curves.svg and MARKET/report.html.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on SYNTHETIC markets whose best policy is known, and compare the agent with it."""
    from host.commands.selftest import new_synthetic_options, print_selftest, split_settings
    from host.commands.selftest import selftest as run

    length, split = split_settings(train_bars, length)
    options = new_synthetic_options(half_life=half_life, noise=noise, cost=cost, length=length, seed=seed)
    files, settings = (picture, out), [*split, *(settings or []), f"train.seed={seed}"]
    document = run(market or [], options, settings, minutes, thread_count(threads), *files, instruments)
    end_with(document, print_selftest, as_json)


@app.command(hidden=PACKED)
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="search, exogenous, widening, rezero, enhancements, ppo, features, selfplay, learn, act, start, "
            "phases, read, memory, ort, ray, environments."
        ),
    ],
    threads: Annotated[
        int, typer.Option(min=0, help="Threads; 0 = all cores.  One is CPU time, more are wall time.")
    ] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds whose median is given.", min=1)] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="`search`, `widening`: 16 simulations, one thread.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of `enhancements`, `ppo`, `environments`.", min=1)] = 5,
    only: Annotated[str | None, typer.Option(help="One enhancement, environment, agent or market, alone.")] = None,
    episodes: Annotated[int, typer.Option(min=64, help="Episodes of a job of `enhancements` at most.")] = 2400,
    minutes: Annotated[float, typer.Option(min=0.001, help="CPU minutes of a job of `ppo`, `environments`.")] = 3.0,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of `enhancements` at once.")] = 1,
    ray: RayOption = None,
    actors: ActorsOption = None,
    limit_minutes: Annotated[float | None, typer.Option(min=0, help="Begin no `enhancements` job later.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results of `enhancements` and `ppo`; default runs/WHAT.")] = None,
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table under its command.")] = False,
) -> None:
    """Measure what the program costs on this machine."""
    install_signal_handlers(EX_TEMPFAIL if what in ("enhancements", "ppo") else None)
    from host.bench.all import print_bench, run_bench
    from host.bench.options import BenchOptions, Budget
    from host.console import shell_join

    budget = Budget(episodes=episodes, threads=thread_count(threads))
    size = BenchOptions(budget.threads, rounds, budget=budget, seeds=seeds, only=only, ray=ray, actors=actors)
    size = replace(size, jobs=jobs, limit_minutes=limit_minutes, rival_minutes=minutes, out=out or Path("runs", what))
    if quick:
        size = replace(size, simulations=(16,), thread_counts=(1,))
    document = run_bench(what, size)
    command = shell_join("python", "swt.py", *(word for word in sys.argv[1:] if word != "--markdown"))
    print(json.dumps(document)) if as_json else print_bench(what, document, sys.stdout, command if markdown else None)


def end_with(document: dict[str, Any], show: Callable[[dict[str, Any], TextIO], None], as_json: bool) -> None:
    """Print a document, and end with 9 unless it has passed."""
    print(json.dumps(document)) if as_json else show(document, sys.stdout)
    if not document["passed"]:
        raise typer.Exit(9)


def thread_count(threads: int) -> int:
    """`threads`, or for 0 the number of cores that this process may use."""
    from host.machine import usable_cores

    return threads or usable_cores()


def main() -> None:
    """Run the command of sys.argv; an error that `explain` knows becomes one line on stderr and an exit code."""
    from host.console import explain, log, open_streams

    gc.set_threshold(50_000)  # at Python's 700, a start walks through its modules again and again
    open_streams()
    install_signal_handlers()
    try:
        command = typer.main.get_command(app)  # its own `main` would take broken pipes and Ctrl-C for itself
        try:
            with command.make_context(HERE.name if PACKED else "swt.py", sys.argv[1:]) as context:
                command.invoke(context)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except KeyboardInterrupt as stop:
        log(str(stop) or "swt: interrupted; what was written so far is kept")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except ModuleNotFoundError as error:
        if not (PACKED and str(error.name).startswith(("host", "models"))):
            raise
        log(f"swt: {HERE} holds what acting needs; {sys.argv[1]} is a command of the checkout")
        sys.exit(2)
    except Exception as error:
        code, text = explain(error)
        if code is None:
            raise
        log(f"swt: {text}")
        sys.exit(code)


if __name__ == "__main__":
    main()
