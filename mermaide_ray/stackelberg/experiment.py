"""The whole experiment: for each noise, train what is to be trained, score all, draw, and say what came out.

Each (method, noise, seed) leaves a file of rows as soon as it is done, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
import yaml
from pydantic import ValidationError
from rich.console import Console

from mermaide_ray.config_file import read_yaml
from mermaide_ray.disk import damaged, one_process, whole_file
from mermaide_ray.errors import InputError
from mermaide_ray.provenance import gone_on, provenance
from mermaide_ray.report.drawing import save_figure
from mermaide_ray.report.files import read_record
from mermaide_ray.stackelberg.evaluation import CONDITIONS, FollowerScoring, tuned_scratch
from mermaide_ray.stackelberg.report import figure, verdict
from mermaide_ray.stackelberg.settings import LEARNED, Settings
from mermaide_ray.stackelberg.training import meta_train
from mermaide_ray.storage import refuse_used

# Payoffs are of the size of 1: a difference below is rounding.
_LEAST_SPAN = 1e-6
_CONFIG = "config.yaml"


def run(settings: Settings, out: Path, console: Console | None = None) -> pd.DataFrame:
    """Runs the experiment, or what is left of it, and returns its rows.

    Leaves in `out`: config.yaml, provenance.json, parts/, rows.parquet, figures/stackelberg.png, verdict.md.

    Args:
        settings: All that it depends on.
        out: A new folder, or that of an earlier run with the same settings.
        console: Where progress is told.

    Raises:
        InputError: The folder is another run's, or another process is at work in it.
    """
    console = console or Console()
    torch.set_num_threads(1)
    _refuse_others(settings, out)
    # Of a new folder, before anything is made there: they may be refused. Else when first needed: it takes seconds.
    evaluations = [] if (out / _CONFIG).is_file() else _evaluations(settings)
    with _opened(settings, out):
        rows = pd.concat(_parts(settings, evaluations, out, console), ignore_index=True)
        with whole_file(out / "rows.parquet") as file:
            rows.to_parquet(file, index=False)
        target = settings.evaluation.target
        evaluation = settings.evaluation
        note = (
            f"Mean and 95% interval over {settings.seeds} training seeds (scratch: one, it has no training) and "
            f"{evaluation.tasks} followers, {evaluation.trials} meetings each. Normalised regret: 0 is the strong "
            "Stackelberg equilibrium, 1 the best commitment without knowing the follower."
        )
        save_figure(figure(rows, target, note), out / "figures" / "stackelberg.png")
        said = verdict(rows, target)
        with whole_file(out / "verdict.md") as file:
            file.write_text(said, encoding="utf-8")
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(f"rows, figure and verdict are in {out}", highlight=False, soft_wrap=True)
    return rows


def _parts(
    settings: Settings, evaluations: list[FollowerScoring], out: Path, console: Console
) -> Iterator[pd.DataFrame]:
    """The rows of each method, noise and seed: read where they are, else made and written."""
    # Seed by seed, so that a run cut short has something to say on each noise.
    jobs = [
        (method, noise, seed)
        for seed in range(settings.seeds)
        for noise in settings.response_noises
        for method in (*LEARNED, "scratch")
        if method in LEARNED or not seed
    ]
    for done, (method, noise, seed) in enumerate(jobs, start=1):
        path = out / "parts" / f"{method},response_noise={noise:g},seed={seed}.parquet"
        if not path.is_file():
            started = time.process_time()
            evaluations = evaluations or _evaluations(settings)
            if method == "scratch":
                validation = FollowerScoring(settings, "validation", num_tasks=settings.evaluation.validation_tasks)
                principal = tuned_scratch(settings, validation, noise)
            else:
                principal = meta_train(settings.with_noise(noise), method, seed)
            rows = pd.concat([each.rows(principal, method, seed, noise) for each in evaluations], ignore_index=True)
            with whole_file(path) as file:
                rows.to_parquet(file, index=False)
            seconds = time.process_time() - started
            console.print(f"{done}/{len(jobs)} {path.stem} ({seconds:.0f} CPU s)", markup=False, highlight=False)
        yield _read(path)


def _read(part: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(part)
    except (OSError, ValueError) as error:  # the bases of all that pyarrow raises
        raise damaged(part, error, "delete it, and the same command makes it again") from None


def _evaluations(settings: Settings) -> list[FollowerScoring]:
    """One for each condition.

    Raises:
        InputError: In one of them there is nothing to know of the followers, so that no regret could be normalised.
    """
    evaluations = [FollowerScoring(settings, condition=condition) for condition in CONDITIONS]
    for each in evaluations:
        if each.span < _LEAST_SPAN:
            raise InputError(
                "`game` and `evaluation.tasks` must be such that the equilibrium is worth more than the best "
                f"commitment without knowing the followers, got {each.span:g} more on {len(each.games)} followers of "
                f"condition {each.condition} (more followers, or game.alignment, game.tastes or game.idiosyncrasy)"
            )
    return evaluations


@contextmanager
def _opened(settings: Settings, out: Path) -> Iterator[None]:
    """While this process works in the folder, new or one of the same settings, no other may."""
    out.mkdir(parents=True, exist_ok=True)
    with one_process(out):
        _refuse_others(settings, out)  # again: another process may have begun there meanwhile
        config, origin = out / _CONFIG, out / "provenance.json"
        record = gone_on(read_record(origin)) if config.is_file() else provenance()
        with whole_file(origin) as file:
            file.write_text(json.dumps(record, indent=1), encoding="utf-8")
        if not config.is_file():
            with whole_file(config) as file:
                file.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        yield


def _refuse_others(settings: Settings, out: Path) -> None:
    """Refuses a folder that holds anything but a run of the same settings."""
    config = out / _CONFIG
    if not config.is_file():
        refuse_used(out)
    elif not _are_in(config, settings):
        raise InputError(f"--out must be a new folder, or one of the same settings, got {out} (see {config})")


def _are_in(config: Path, settings: Settings) -> bool:
    """Whether a file holds these settings."""
    try:
        return Settings.model_validate(read_yaml(config)) == settings
    except ValidationError:  # another kind of run's, or of another version
        return False
