"""The job behind `mermaide sweep`: lists the trials, or runs them, assembles the results and reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mermaide_ray.disk import one_process
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.machine import cpus
from mermaide_ray.progress import clock, count, tell, terminal
from mermaide_ray.provenance import gone_on, provenance
from mermaide_ray.storage import checkpoint_seconds, refuse_used
from mermaide_ray.sweep.checks import check_plan
from mermaide_ray.sweep.file import SWEEP_FILE, dump_sweep, read_sweep
from mermaide_ray.sweep.identity import check_runs, check_sweep
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import Sweep
from mermaide_ray.sweep.status import DONE, FAILED, STOPPED, UNFINISHED, bundles, is_over, read_statuses, reopen
from mermaide_ray.sweep.store import Store

if TYPE_CHECKING:
    import pandas as pd

# Trials listed one by one; of more, the first and the last.
_MOST_LISTED = 40
_BEST = 5


def dry_run(sweep: Sweep, where: str, principals: Sequence[Path] = ()) -> None:
    """Prints what a sweep would do: its trials, their environment steps and time. Starts nothing.

    Args:
        sweep: The resolved sweep.
        where: The file it is from, for messages.
        principals: As for `run_sweep`.

    Raises:
        InputError: The sweep is not valid, or a folder holds no principal for it.
    """
    plan, console = Plan(sweep, where), terminal()
    check_plan(plan)
    sources = _sources(principals, plan)
    console.print(Text(sweep.question, style="bold"))
    env_steps, cpu_seconds = plan.env_steps, plan.cpu_seconds()
    if sweep.is_enumerated:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("trial", overflow="fold")  # a name that is cut tells no trial from another
        table.add_column("method")
        for heading in ("env steps", "CPU time"):
            table.add_column(heading, justify="right")
        trials = [(trial, trial.without(sources)) for trial in plan.trials]
        shown = trials if len(trials) <= _MOST_LISTED else [*trials[: _MOST_LISTED // 2], *trials[-_MOST_LISTED // 2 :]]
        for place, (trial, left) in enumerate(shown):
            if len(trials) > len(shown) and place == _MOST_LISTED // 2:
                table.add_row(f"… {len(trials) - len(shown)} more …", "", "", "")
            steps, time = (count(left.env_steps), clock(left.cpu_seconds)) if left.seeds else ("scored only", "")
            table.add_row(*map(Text, (trial.name, trial.setting.experiment.name, steps, time)))
        console.print(table)
        env_steps -= sum(trial.env_steps - left.env_steps for trial, left in trials)
        cpu_seconds -= sum(trial.cpu_seconds - left.cpu_seconds for trial, left in trials)
    else:
        breeds = sweep.tune.scheduler == "pbt"
        what = "members, whose settings Tune draws and breeds" if breeds else "settings, which Optuna finds as it goes"
        console.print(f"{sweep.tune.samples} {what}, over {', '.join(plan.dimensions)}", highlight=False)
    places = cpus() // max(1, round(sum(bundle["CPU"] for bundle in plan.bundles)))
    at_once = max(1, min(places, plan.num_trials, sweep.resources.concurrent or places))
    rows = plan.num_rows()
    told = "as the search goes" if rows is None else rows
    console.print(
        f"{plan.num_runs} runs, {count(env_steps)} env steps, about {clock(cpu_seconds)} of CPU time, "
        f"{clock(cpu_seconds / at_once)} here with {at_once} at a time (start-up and scoring not counted); "
        f"rows: {told}",
        highlight=False,
    )
    _check_rows(plan, rows, where)


def run_sweep(
    sweep: Sweep,
    where: str,
    root: str,
    with_report: bool = True,
    principals: Sequence[Path] = (),
    trusted: bool = False,
) -> None:
    """Runs a sweep, or goes on with it where it was interrupted.

    Args:
        sweep: The resolved sweep.
        where: The file it is from, for messages.
        root: Folder or URI of the results.
        with_report: Whether to end with a report.
        principals: Folders of sweeps whose finished runs with the same settings are scored, not trained again.
        trusted: Whether checkpoints in the folder that others may have written may be unpickled.

    Raises:
        InputError: The sweep is not valid, the folder holds another one, or another process works in it.
        RunFault: Some runs failed; all others are done and on record.
    """
    plan, console, store = Plan(sweep, where), terminal(), Store(root)
    check_plan(plan)
    _check_rows(plan, plan.num_rows(), where)
    checkpoint_seconds()  # refused now, not by each run
    sources = _sources(principals, plan)

    with _alone(store):
        _begin(store, sweep)
        console.print(f"results in {root}", soft_wrap=True, highlight=False)
        if not is_over(plan, read_statuses(store)):
            _note_other_code(store)
            if principals:
                from mermaide_ray.sweep.adopt import adopt

                adopt(plan, store, sources, console)
            _train(plan, store, console, trusted)
        _conclude(plan, store, console, with_report)


def _sources(principals: Sequence[Path], plan: Plan) -> Mapping[str, Path]:
    if not principals:
        return {}
    from mermaide_ray.sweep.adopt import trained_in

    return trained_in(principals, plan)


def _train(plan: Plan, store: Store, console: Console, trusted: bool) -> None:
    from mermaide_ray.cluster.join import ray_running
    from mermaide_ray.sweep.panel import Panel
    from mermaide_ray.sweep.tuning import fit

    known = read_statuses(store)
    env_steps = plan.env_steps - sum(status.budget or 0 for status in known.values() if status.is_adopted)
    with (
        ray_running(bundles(plan, known), console, storage=store.root),
        Panel(console, plan.sweep.name, plan.num_trials, env_steps, plan.metric) as panel,
    ):
        fit(plan, store, panel, trusted)


def _conclude(plan: Plan, store: Store, console: Console, with_report: bool) -> None:
    """Assembles the results, tells what came of the sweep, and reports."""
    from mermaide_ray.sweep.results import assemble

    outcome = assemble(plan, store)
    done, failed, stopped, left = map(outcome.count, (DONE, FAILED, STOPPED, UNFINISHED))
    _print_best(plan, outcome.trials, console)
    expected = plan.num_rows()
    runs = f"{done} runs done, {failed} failed, {stopped} stopped{f', {left} unfinished' if left else ''}"
    console.print(
        f"{runs}; {outcome.num_rows} rows in {store.uri('rows.parquet')}",
        soft_wrap=True,
        highlight=False,
    )
    fault = None
    if failed:
        again = "the same command tries them again"
        if plan.sweep.tune.scheduler == "pbt" and failed < len(outcome.trials):
            again = "of a population, the same command tries only members again whose process died"
        first = outcome.trials[outcome.trials["status"] == FAILED].iloc[0]
        fault = (
            f"{failed} of {len(outcome.trials)} runs failed, the first with: {first['error']} (settings and tracebacks "
            f"in {store.uri('failures')}; {again})"
        )
    elif expected is not None and done == plan.num_runs and outcome.num_rows != expected:
        fault = f"the sweep must yield {expected} rows, got {outcome.num_rows} ({store.uri('rows.parquet')})"
    if with_report and done and store.is_folder:
        from mermaide_ray.report.document import write_report

        try:
            tell(console, write_report([store.path]).summary())
        except (InputError, RunFault, OSError) as error:
            if fault is None:
                raise
            fault += f"; and there is no report: {error}"  # for want of what failed, as a rule
    elif with_report and done:
        tell(console, f"no report in a bucket: copy {store.uri('')} to a folder, then `mermaide report FOLDER`")
    if fault is not None:
        raise RunFault(fault)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keeps other processes from the folder, which is made if need be. Nothing keeps them from a bucket."""
    if not store.is_folder:
        yield
        return
    if store.read(SWEEP_FILE) is None:
        refuse_used(store.path, ", which is no sweep's")
        try:
            store.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFault(f"--out must be a folder that can be made, got {store.root} ({error.strerror})") from None
    with one_process(store.path):
        yield


def _begin(store: Store, sweep: Sweep) -> None:
    """Writes the sweep, or makes sure that the one already there is the same."""
    known = store.read(SWEEP_FILE)
    if known is None:
        # The sweep last: a folder without it is nobody's, and may be begun anew.
        store.write("provenance.json", json.dumps(provenance(), indent=1).encode())
        store.write(SWEEP_FILE, dump_sweep(sweep).encode())
        return

    where, runs = store.uri(SWEEP_FILE), read_statuses(store)
    theirs, plan = read_sweep(known.decode(), where), Plan(sweep, where)
    other_rules = theirs.baselines != sweep.baselines and not any(status.is_done for status in runs.values())
    check_sweep(theirs, sweep, other_rules, where)
    other_budget = theirs.tune.env_steps != sweep.tune.env_steps
    if other_budget or not is_over(plan, runs):
        check_runs(plan, store, runs)
    if other_budget:
        reopen(store)
    if other_rules:
        store.delete("baselines")  # scored by a run that was killed before it was done
    store.write(SWEEP_FILE, dump_sweep(sweep).encode())


def _note_other_code(store: Store) -> None:
    """Puts on record that the sweep goes on with other code, or other versions, than it was begun with."""
    record = json.loads(store.read("provenance.json") or b"{}")
    store.write("provenance.json", json.dumps(gone_on(record), indent=1).encode())


def _check_rows(plan: Plan, rows: int | None, where: str) -> None:
    if plan.sweep.rows is not None and rows is not None and rows != plan.sweep.rows:
        raise InputError(f"`rows` must be what the sweep yields at this scale, {rows}, got {plan.sweep.rows} ({where})")


def _print_best(plan: Plan, trials: pd.DataFrame, console: Console) -> None:
    """The best settings by the metric, where there was anything to search."""
    if not plan.dimensions or plan.metric not in trials:
        return
    done = trials[trials["status"] == DONE]
    if done.empty:
        return
    means = done.groupby("trial", sort=False)[plan.metric].agg(["mean", "count"]).sort_values("mean", ascending=False)
    table = Table(title=f"best of {len(means)} by {plan.metric}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", overflow="fold")
    for heading in (plan.metric, "seeds"):
        table.add_column(heading, justify="right")
    for trial, line in means.head(_BEST).iterrows():
        table.add_row(*map(Text, (str(trial), f"{line['mean']:.3f}", f"{int(line['count'])}")))
    console.print(table)
