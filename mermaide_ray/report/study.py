"""What is to be reported: the rows of all folders as one, the settings in which they differ, the main method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mermaide_ray.config_file import flat, one_line, short_names
from mermaide_ray.environment import Environment
from mermaide_ray.errors import InputError
from mermaide_ray.report.cells import Cell, Cells
from mermaide_ray.report.names import FLOORS, condition_title, is_privileged, is_trained
from mermaide_ray.report.sources import LABELS, Source, number, read_source
from mermaide_ray.sweep.file import SWEEP_FILE, read_claim
from mermaide_ray.sweep.sections import Claim
from mermaide_ray.sweep.status import SETTING

DEFAULT_QUESTION = "How well do these principals steer agents that they never met?"
FOLDER = "folder"
# What is no setting of the method or its game: names, who did the work, how often and on how many tasks it is scored.
NO_SETTINGS = ("name", "seed", "env_runners")
_SCORING = tuple(f"evaluation.{key}" for key in ("k", "tasks", "episodes", "every", "validation_tasks"))
_GAME = ("environment.", "agents.")


@dataclass(frozen=True)
class Study:
    """All folders of one report.

    Attributes:
        sources: The folders.
        cells: Their rows, by cell.
        rows: The rows themselves, with the columns `setting` and `source` (the folder's number).
        settings: Swept settings of the trained methods: a line per setting's label, a column per dotted key.
        claim: The first `answer` section of the sweeps; None without one.
        main: The method that the report is about.
        notes: Sentences on what is missing or was put together.
    """

    sources: tuple[Source, ...]
    cells: Cells
    rows: pd.DataFrame
    settings: pd.DataFrame
    claim: Claim | None
    main: str
    notes: tuple[str, ...]

    @property
    def question(self) -> str:
        """The sweep's question, or a general one."""
        asked = [source.document.get("question") for source in self.sources if source.is_sweep]
        return str(next(filter(None, asked), DEFAULT_QUESTION))

    @property
    def methods(self) -> list[str]:
        """The main method, other trained ones, fixed rules, privileged ones."""
        found = list(dict.fromkeys(cell.method for cell in self.cells))
        return sorted(found, key=lambda name: (is_privileged(name), not is_trained(name), name != self.main))

    @property
    def conditions(self) -> list[str]:
        """Conditions, in the sweep's order, else validation before test."""
        wanted: list[str] = []
        for source in self.sources:
            told = source.document.get("conditions")
            wanted += [str(name) for name in told] if isinstance(told, Mapping) else []
        wanted += ["train", "validation", "test"]
        found = dict.fromkeys(cell.condition for cell in self.cells)
        return sorted(found, key=lambda name: wanted.index(name) if name in wanted else len(wanted))

    def title(self, condition: str) -> str:
        """What a condition is called in headings."""
        return condition_title(condition, self.cells.split(condition))

    @property
    def dimensions(self) -> list[str]:
        """Dotted keys of the settings that take several values."""
        return [str(key) for key in self.settings.columns if self.settings[key].nunique(dropna=False) > 1]

    @property
    def shift_condition(self) -> str:
        """The condition that says most where there is room for one: test, else the last."""
        return "test" if "test" in self.conditions else self.conditions[-1]

    def holds(self, source: int, method: str, setting: str) -> bool:
        """Whether the folder with this number has rows of a method in a setting ("" for any)."""
        own = (self.rows["source"] == source) & (self.rows["method"] == method)
        return bool((own & (self.rows["setting"] == setting)).any() if setting else own.any())

    def horizon(self, cell: Cell) -> float:
        """Pulls per episode in a cell's game; of older rows as searched, as `always` intervenes, or the default."""
        if "horizon" in self.cells.measures:
            told = self.cells.matrix(cell, "horizon").to_numpy()
            if (finite := told[np.isfinite(told)]).size:
                return float(finite[0])
        searched = self.settings.get("environment.horizon")
        if searched is not None and isinstance(searched.get(cell.setting), float):
            return float(searched[cell.setting])
        always = self.cells.find("always", cell.setting, cell.condition, 0)
        if always is not None:
            return float(self.cells.matrix(always, "interventions").to_numpy().mean())
        return float(Environment().horizon)

    def cells_of(
        self, method: str, k: int, conditions: Sequence[str], settings: Sequence[str] | None = None
    ) -> list[Cell]:
        """The method's cells over these conditions and settings (default: all); a fixed rule's by game."""
        chosen = self.settings.index if settings is None else settings
        found = [self.cells.find(method, str(setting), condition, k) for condition in conditions for setting in chosen]
        return [cell for cell in dict.fromkeys(found) if cell is not None]

    def largest(self, method: str, condition: str) -> list[int]:
        """The largest K at which a method is scored in a condition; empty where it isn't scored there."""
        return self.cells.ks(method, condition)[-1:]

    def at_largest(self, method: str, condition: str, settings: Sequence[str] | None = None) -> list[Cell]:
        """The method's cells in one condition at its largest K there."""
        return [
            cell for k in self.largest(method, condition) for cell in self.cells_of(method, k, [condition], settings)
        ]

    def gain_of_k(self, method: str, condition: str, settings: Sequence[str] | None = None) -> pd.DataFrame:
        """What the largest K adds to the smallest one's score, [S, T]; empty where a method scores alike at every K."""
        ks = self.cells.ks(method, condition)
        if len(ks) < 2:
            return pd.DataFrame()
        high = self.cells_of(method, ks[-1], [condition], settings)
        low = self.cells_of(method, ks[0], [condition], [cell.setting for cell in high])
        between = f"{method} at K = {ks[-1]} against K = {ks[0]}, {condition}"
        if settings is not None and len(settings) < len(self.settings):
            between += f", {settings[0] if len(settings) == 1 else f'{len(settings)} settings'}"
        gain = self.cells.gain(high, low, between=between)
        return gain if gain.size and gain.to_numpy().any() else pd.DataFrame()

    def better_floor(self, cells: Sequence[Cell]) -> tuple[str, pd.DataFrame]:
        """The stronger predictor that learns nothing beforehand, and the world model's loss less its loss, [S, T]."""
        after = self.cells.pooled(cells, "wm_nll_after")
        floors = {floor: self.cells.pooled(cells, floor).reindex_like(after) for floor in FLOORS}
        floor = min(floors, key=lambda name: float(floors[name].to_numpy().mean()))
        return floor, after - floors[floor]

    def values_of(self, key: str) -> list[Any]:
        """The values of one dimension, numbers in order, labels as they come."""
        values = list(dict.fromkeys(self.settings[key].dropna()))
        return sorted(values) if all(isinstance(value, float | int) for value in values) else values

    def is_numeric(self, key: str) -> bool:
        """Whether all values of one dimension are numbers."""
        return all(isinstance(value, float) for value in self.values_of(key))


def read_study(folders: Sequence[Path]) -> Study:
    """Reads all folders of a report.

    Raises:
        InputError: A folder holds nothing to report, or what it holds can't be read.
    """
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    sources = tuple(read_source(folder) for folder in paths)
    notes = [note for source in sources for note in source.notes]
    frames, differ = _with_settings(sources)
    frames = [frame.assign(source=np.int16(number)) for number, frame in enumerate(frames)]
    frames, told = _told_apart(sources, frames)
    rows = frames[0] if len(frames) == 1 else _stacked(frames)
    _check_agents(rows)
    keys = [column.removeprefix(SETTING) for column in rows.columns if column.startswith(SETTING)]
    rows, settings = _labelled(rows, keys)
    cells = Cells(rows)
    trained = {cell.setting for cell in cells if is_trained(cell.method)}
    # Rules' lines may leave open what is no part of the game: such a label is no setting of the sweep's.
    settings = settings.loc[[label for label in settings.index if not trained or label in trained]]
    claim = _claim(sources)
    main = _main_method(sources, claim, list(dict.fromkeys(cell.method for cell in cells)))
    return Study(sources, cells, rows, settings, claim, main, (*notes, *differ, *told))


def _check_agents(rows: pd.DataFrame) -> None:
    """Refuses training agents of several training seeds: each seed has its own, and a task's number names another."""
    met = rows.loc[rows["split"] == "train", ["method", "seed"]].drop_duplicates()
    seeds = sorted({int(seed) for method, seed in met.itertuples(index=False) if is_trained(str(method))})
    if len(seeds) > 1:
        raise InputError(
            "a report on training agents must be of one training seed, since each has agents of its own, got "
            f"{', '.join(map(str, seeds))} (report their folders one by one, or evaluate with --split validation)"
        )


def short(key: str) -> str:
    """`environment.num_arms` as `num_arms`."""
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    """A setting's value as tables print it."""
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None or value is pd.NA else str(value)


def _claim(sources: Sequence[Source]) -> Claim | None:
    told = ((source, source.document.get("answer")) for source in sources if source.is_sweep)
    return next((read_claim(claim, str(source.folder / SWEEP_FILE)) for source, claim in told if claim), None)


def _main_method(sources: Sequence[Source], claim: Claim | None, methods: Sequence[str]) -> str:
    wanted: list[Any] = [claim.value] if claim and claim.compare == "method" else []
    for source in sources:
        named, settings = source.document.get("methods"), source.document.get("settings")
        wanted += named[:1] if isinstance(named, list) else []
        wanted += [settings.get("name")] if isinstance(settings, Mapping) else []
        wanted += [source.document.get("preset"), source.document.get("name")]
    found = [str(name) for name in wanted if name in methods]
    return next(iter([*found, *filter(is_trained, methods), *sorted(methods, key=is_privileged)]))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell one run from another, by dotted key."""
    kept = {key: value for key, value in settings.items() if key not in NO_SETTINGS}
    evaluation = kept.get("evaluation")
    if isinstance(evaluation, Mapping) and evaluation.get("planning") is False:
        kept["evaluation"] = {**evaluation, "rehearsals": 0}  # whatever is set: nothing is imagined
    # A mixture of families is one setting: its parts mean nothing alone.
    return {
        key: number(value) if isinstance(value, int | float) else one_line(value)
        for key, value in flat(kept, whole=("families",))
        if key not in _SCORING
    }


def _searched(source: Source) -> list[str]:
    return [str(column).removeprefix(SETTING) for column in source.rows.columns if str(column).startswith(SETTING)]


def _less(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Settings but for those at, below or above some keys: a search may vary a section, or a part of a mixture."""
    dotted = [f"{key}." for key in keys]
    return {
        key: value
        for key, value in settings.items()
        if not any(f"{key}.".startswith(other) or other.startswith(f"{key}.") for other in dotted)
    }


def _fixed(source: Source) -> dict[str, dict[str, Any]]:
    """Method -> what may tell its runs from those of another folder, but for what a sweep searched."""
    return {method: _less(_flat(settings), _searched(source)) for method, settings in source.configs.items()}


def _differing(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that have several values, among those who tell them."""
    keys = dict.fromkeys(key for one in every for key in one)
    return [key for key in keys if len({one[key] for one in every if key in one}) > 1]


def _with_settings(sources: Sequence[Source]) -> tuple[list[pd.DataFrame], list[str]]:
    """Rows with a setting.* column for all that tells folders apart, and a note of what that is beside the searched.

    That is what a sweep searched, in what folders differ that trained the same method, and in what games any of them
    differ: methods differ in all else by what they are.
    """
    told = [_fixed(source) for source in sources]
    methods = dict.fromkeys(method for of_source in told for method in of_source)
    differing = [key for method in methods for key in _differing([one[method] for one in told if method in one])]
    differing += [key for key in _differing([one for of in told for one in of.values()]) if key.startswith(_GAME)]
    searched = [key for source in sources for key in _searched(source)]
    frames = []
    for source, fixed in zip(sources, told, strict=True):
        played = next(iter(fixed.values()), {})
        rows, own = source.rows["method"].astype("category").cat, _searched(source)
        columns = {}
        for key in dict.fromkeys([*differing, *searched]):
            if key not in own:
                # A rule knows only the game.
                game = played.get(key) if key.startswith(_GAME) else None
                values = [fixed[name].get(key) if name in fixed else game for name in rows.categories]
                columns[SETTING + key] = np.array(values, object)[rows.codes]
        frames.append(source.rows.assign(**columns))
    found = ", ".join(dict.fromkeys(key for key in differing if key not in searched))
    return frames, [f"Folders differ in {found}: figures over all of them are over several settings."] * bool(found)


def _told_apart(sources: Sequence[Source], frames: list[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Drops rules that an earlier folder played too; rows get their folder's name where nothing else tells them apart.

    That is where a training run is there twice, or conditions of one name are different ones.
    """
    settings = [column for column in frames[0].columns if column.startswith(SETTING)]
    identity = ["method", *settings, "condition", "k", "seed"]
    keys = [column.removeprefix(SETTING) for column in settings]
    seen: set[tuple[Any, ...]] = set()
    scored: dict[tuple[Any, ...], dict[str, Any]] = {}
    kept, notes = [], dict[str, None]()
    for source, frame in zip(sources, frames, strict=True):
        group = frame.groupby(identity, sort=False, dropna=False, observed=True).ngroup()
        firsts = frame.loc[~group.duplicated(), identity].itertuples(index=False, name=None)
        known = [tuple(None if pd.isna(value) else value for value in line) for line in firsts]
        again = [place for place, line in enumerate(known) if line in seen]
        if any(is_trained(str(known[place][0])) for place in again):
            notes["Several folders hold the same method, settings and training seed"] = None
        for method, *values, condition in dict.fromkeys(line[:-2] for line in known if is_trained(str(line[0]))):
            own = _less(_flat(source.scored_with(str(method), str(condition))), keys)
            if differing := _differing([scored.setdefault((method, *values, condition), own), own]):
                notes[f"Folders score {method} in different conditions called {condition} ({differing[0]})"] = None
        seen.update(known)
        kept.append(frame[~group.isin(again)] if again else frame)
    if not notes:
        return kept, []
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        names = [str(source.folder) for source in sources]
    frames = [frame.assign(**{SETTING + FOLDER: name}) for frame, name in zip(frames, names, strict=True)]
    return frames, [f"{note}: they are told apart by their folders." for note in notes]


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    stacked = pd.concat(frames, ignore_index=True)
    return stacked.astype(dict.fromkeys([column for column in LABELS if column in stacked], "category"))


def _labelled(rows: pd.DataFrame, keys: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows with one column `setting` in place of setting.*, and what its labels stand for."""
    columns = [SETTING + key for key in keys]
    if not columns:
        one = pd.DataFrame(index=pd.Index([""], name="setting"))
        return rows.assign(
            setting=pd.Categorical.from_codes(np.zeros(len(rows), np.int64), categories=pd.Index([""]))
        ), one
    # Text and numbers alike as codes: grouping millions of rows by text takes seconds.
    coded = {column: pd.factorize(rows[column]) for column in columns}
    codes = pd.DataFrame({column: found[0] for column, found in coded.items()}, index=rows.index)
    group = codes.groupby(columns, sort=False).ngroup()
    firsts = codes.groupby(columns, sort=False).first().reset_index()
    settings = pd.DataFrame(
        {
            key: [None if code < 0 else number(found[code]) for code in firsts[column]]
            for key, column in zip(keys, columns, strict=True)
            for found in [list(coded[column][1])]
        },
        dtype=object,
    )
    constant = [key for key in keys if settings[key].dropna().nunique() <= 1]
    names = short_names([key for key in keys if key not in constant])
    labels = [
        ", ".join(f"{names[key]}={shown(line[key])}" for key in names if line[key] is not None)
        for line in settings.to_dict("records")
    ]
    if len(set(labels)) < len(labels):
        settings, group, labels = _merged(settings, group, labels)
    settings.index = pd.Index(labels, name="setting")
    if settings.index.has_duplicates:
        raise InputError(f"settings must have different values or labels, got {labels} ({', '.join(keys)})")
    return rows.drop(columns=columns).assign(
        setting=pd.Categorical.from_codes(group, categories=pd.Index(labels))
    ), settings


def _merged(
    settings: pd.DataFrame, group: pd.Series[int], labels: list[str]
) -> tuple[pd.DataFrame, pd.Series[int], list[str]]:
    """Settings that differ only in what some rows leave open (a constant that rules lack) are one."""
    firsts = list(dict.fromkeys(labels))
    place = [firsts.index(label) for label in labels]
    # The line that leaves the least open speaks for them.
    best = settings.assign(label=labels, filled=settings.notna().sum(axis=1)).sort_values("filled", ascending=False)
    kept = best.drop_duplicates("label").set_index("label").loc[firsts].drop(columns="filled").reset_index(drop=True)
    return kept, group.map(dict(enumerate(place))), firsts
