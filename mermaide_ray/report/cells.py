"""Scores by cell: (method, setting, condition, K) -> training seeds x tasks. Sorted once; a cell is then a slice.

Sweeps leave hundreds of thousands of rows, and every table, figure and diagnostic asks for the same few matrices.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mermaide_ray.errors import InputError
from mermaide_ray.report.names import SCORE, is_trained
from mermaide_ray.report.statistics import QUARTILE, SEED, Interval, bootstrap_interval, performance_profile

# Two directories that ran the same game on other machines may differ in the last digits of a float32. Returns lie on a
# grid (hits and costs over episodes) that meets the ties of rounding again and again; a little beside it, it does not.
DIGITS, BESIDE = 3, 6e-5

Group = dict[str, pd.DataFrame]
"""Setting -> values [S, T] of the same tasks."""


def trim_of(measure: str) -> float:
    """Share cut off at each end: scores are told by interquartile means, all else by means, as the units suggest."""
    return QUARTILE if measure == SCORE else 0.0


class Cell(NamedTuple):
    """What the seeds x tasks of one matrix have in common."""

    method: str
    setting: str
    condition: str
    k: int


@dataclass(frozen=True, order=True)
class Run:
    """What names a row of a matrix where training runs of several settings stand one by one, in place of a seed.

    A seed's number alone would pair it with that seed of another side, which is of other settings.
    """

    setting: str
    seed: int


class Cells:
    """The matrices of a study.

    A fixed rule plays each distinct game once, whatever else a sweep searched. `find` looks it up by the game that a
    setting plays, which the returns of the two bounds identify.

    Args:
        rows: Columns method, setting, condition, split, k, seed, family, task, and measures.

    Attributes:
        left_out: Sentences on training seeds and tasks whose rows could not be used, in the order met.

    Raises:
        InputError: Two rows have the same method, setting, condition, K, seed and task.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        labels = {name: rows[name].astype("category") for name in ("method", "setting", "condition", "family")}
        # The bootstrap draws by position: in the order of the rows, an interval would depend on who wrote them.
        labels["family"] = labels["family"].cat.reorder_categories(sorted(labels["family"].cat.categories))
        codes = {name: column.cat.codes.to_numpy().astype(np.int64) for name, column in labels.items()}
        categories = {name: [str(value) for value in column.cat.categories] for name, column in labels.items()}
        k, seeds, task = (rows[name].to_numpy(np.int64) for name in ("k", "seed", "task"))
        # One number per task of a condition, the same for all methods and settings.
        tasks = codes["condition"] * len(categories["family"]) + codes["family"]
        tasks = tasks * (int(task.max()) + 1) + task
        cell_of = (codes["method"] * len(categories["setting"]) + codes["setting"]) * len(categories["condition"])
        cell_of = (cell_of + codes["condition"]) * (k.max() + 1) + k
        order = np.lexsort((tasks, seeds, cell_of))
        self._rows, self._seeds, self._tasks = rows, seeds[order], tasks[order]
        self._order, self._values = order, dict[str, NDArray[np.float32]]()
        cells = cell_of[order]
        same = (np.diff(cells) == 0) & (np.diff(self._seeds) == 0) & (np.diff(self._tasks) == 0)
        if same.any():
            twice = rows.iloc[order[int(np.argmax(same))]]
            raise InputError(
                "rows must be one per method, setting, condition, K, training seed and task, but "
                f"{twice['method']} (seed {twice['seed']}, K = {twice['k']}, {twice['condition']}, "
                f"setting {twice['setting']!r}) has task {twice['task']} of {twice['family']} twice"
            )
        starts = np.flatnonzero(np.r_[True, np.diff(cells) != 0])
        stops = np.r_[starts[1:], len(cells)]
        self._slices = {
            Cell(
                categories["method"][codes["method"][row]],
                categories["setting"][codes["setting"][row]],
                categories["condition"][codes["condition"][row]],
                int(k[row]),
            ): slice(start, stop)
            for row, start, stop in zip(order[starts], starts, stops, strict=True)
        }
        self._matrices: dict[Hashable, pd.DataFrame] = {}
        self._intervals: dict[Hashable, Interval] = {}
        self._families, self._ids = categories["family"], int(task.max()) + 1
        self._per_condition = self._ids * len(self._families)
        first = rows.drop_duplicates("condition").set_index("condition")["split"]
        self._splits = {name: str(first[name]) for name in categories["condition"]}
        self._bounds = [bound for bound in ("never_return", "oracle_return") if bound in rows]
        self.left_out: dict[str, None] = {}
        self._game_of: dict[Cell, bytes] = {}
        self._games: dict[tuple[str, str], bytes] = {}
        self._played: dict[tuple[str, str, int, bytes], Cell] = {}
        self._ks: dict[tuple[str, str | None], set[int]] = {}
        for cell in self._slices:
            for condition in (None, cell.condition):
                self._ks.setdefault((cell.method, condition), set()).add(cell.k)
            game = self._game_of[cell] = self._identify(cell)
            self._games.setdefault((cell.setting, cell.condition), game)
            self._played.setdefault((cell.method, cell.condition, cell.k, game), cell)

    @classmethod
    def of_run(cls, rows: pd.DataFrame) -> Cells:
        """Of rows that have no settings. Older ones name no condition: it was the split."""
        return cls(rows.assign(setting="", condition=rows.get("condition", rows["split"])))

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._slices)

    def named(self, column: str) -> list[str]:
        """The methods, conditions or families, in the order of the rows."""
        return [str(name) for name in self._rows[column].unique()]

    @property
    def measures(self) -> set[str]:
        """Measures that there are."""
        return set(self._rows.columns)

    def ks(self, method: str, condition: str | None = None) -> list[int]:
        """The K at which a method is scored, anywhere or in one condition."""
        return sorted(self._ks.get((method, condition), ()))

    def shared_ks(self, method: str, conditions: Iterable[str]) -> list[int]:
        """The K that all these conditions have in common, but for those in which the method isn't scored."""
        scored = [set(ks) for condition in conditions if (ks := self.ks(method, condition))]
        return sorted(set.intersection(*scored)) if scored else []

    def k_beside(self, method: str, k: int, conditions: Sequence[str]) -> int:
        """K at which a method stands against others at `k`: the largest that is no larger, or its smallest."""
        ks = self.shared_ks(method, conditions) or self.ks(method)
        return max((own for own in ks if own <= k), default=min(ks, default=k))

    def find(self, method: str, setting: str, condition: str, k: int) -> Cell | None:
        """The method's cell in this setting; of a rule or an oracle, else the one where it played the same game."""
        cell = Cell(method, setting, condition, k)
        if cell in self._slices:
            return cell
        if is_trained(method):
            return None  # the same game, but another training
        game = self._games.get((setting, condition))
        return None if game is None else self._played.get((method, condition, k, game))

    def families(self, tasks: Iterable[Any]) -> list[str]:
        """The family of each column of a matrix."""
        return [self._families[task // self._ids % len(self._families)] for task in tasks]

    def agents(self, tasks: Iterable[Any]) -> list[str]:
        """The agent of each column of a matrix, by split and task id: conditions of a split have theirs in common."""
        splits = list(self._splits.values())
        return [f"{splits[task // self._per_condition]} {task % self._ids}" for task in tasks]

    def moved(self, matrix: pd.DataFrame, condition: str) -> pd.DataFrame:
        """The matrix of one condition, with the tasks that its agents are in another."""
        first = list(self._splits).index(condition) * self._per_condition
        agents = matrix.columns.to_numpy(np.int64) % self._per_condition
        return matrix.set_axis(pd.Index(agents + first), axis="columns")

    def split(self, condition: str) -> str:
        """The split that a condition takes its agents from."""
        return self._splits[condition]

    def seeds(self, cell: Cell) -> list[int]:
        """Training seeds of a cell."""
        return [int(seed) for seed in np.unique(self._seeds[self._slices[cell]])]

    def matrix(self, cell: Cell, measure: str = SCORE) -> pd.DataFrame:
        """Values [S, T] of one cell, seeds as index, tasks as columns; only seeds that have all tasks of the cell.

        Tasks without any value (no normalised score where the oracle gains nothing) are left out.
        """
        key = (cell, measure)
        if key not in self._matrices:
            chosen = self._slices[cell]
            seeds, tasks = self._seeds[chosen], self._tasks[chosen]
            values = self._column(measure)[chosen]
            names, counts = np.unique(seeds, return_counts=True)
            wide = tasks.reshape(len(names), -1) if (counts == counts[0]).all() else None
            if wide is not None and (wide == wide[0]).all():
                matrix = pd.DataFrame(values.reshape(wide.shape), index=names, columns=wide[0], dtype=np.float64)
            else:
                long = pd.DataFrame({"seed": seeds, "task": tasks, "value": values.astype(np.float64)})
                matrix = long.pivot(index="seed", columns="task", values="value")
                told = long.assign(value=1.0).pivot(index="seed", columns="task", values="value")
                whole = told.notna().all(axis=1)
                if not whole.all():
                    seeds_out = ", ".join(map(str, matrix.index[~whole]))
                    self.left_out[
                        f"{cell.method}, {cell.condition}, K = {cell.k}{', ' * bool(cell.setting)}{cell.setting}: "
                        f"training seeds {seeds_out} lack tasks that others have, and are left out."
                    ] = None
                matrix = matrix[whole]
            self._matrices[key] = self._whole(cell, measure, matrix.dropna(axis=1, how="all"))
        return self._matrices[key]

    def _whole(self, cell: Cell, measure: str, matrix: pd.DataFrame) -> pd.DataFrame:
        """Without the tasks that have a value for some seeds alone: any figure over several would lose those seeds."""
        partial = matrix.columns[matrix.dropna(how="all").isna().any()]
        if len(partial):
            self.left_out[
                f"{cell.method}, {cell.condition}, K = {cell.k}{', ' * bool(cell.setting)}{cell.setting}: "
                f"{len(partial)} of {matrix.shape[1]} tasks have no {measure} for some seeds, and are left out."
            ] = None
        return matrix.drop(columns=partial)

    def has_values(self, cell: Cell, measure: str = SCORE) -> bool:
        """Whether any row of the cell has a value, of whatever seed and task."""
        return bool(np.isfinite(self._column(measure)[self._slices[cell]]).any())

    def pooled(self, cells: Sequence[Cell], measure: str = SCORE) -> pd.DataFrame:
        """Values [S, T] of one method over several settings and conditions.

        Tasks of several conditions stand side by side (`agents` tells which are of the same agent). Over settings a
        task's values are averaged, seed by seed, so that each of these settings weighs the same; tasks that have no
        value in one of them are left out. Settings that met no task in common, such as those of other families of
        agents, stand side by side as conditions do. Only seeds that have all of it count; where settings of the same
        tasks have no seed in common, each training run is a seed of its own (and a setting weighs as its runs do): a
        `Run` then names its row.
        """
        groups = self._groups(cells, measure)
        return self._joined(cells, groups, _must_be_runs(groups))

    def pooled_alike(
        self, one: Sequence[Cell], other: Sequence[Cell], measure: str = SCORE
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """`pooled` of two sides; training runs of their own on both where they must be on one.

        A mean over all settings, beside runs of which some setting has fewer than others, would be of another game.
        Rules have no training runs.
        """
        sides = [(side, self._groups(side, measure)) for side in (one, other)]
        runs = any(_must_be_runs(groups) for _, groups in sides)
        mine, theirs = (
            self._joined(side, groups, runs and all(is_trained(cell.method) for cell in side)) for side, groups in sides
        )
        return mine, theirs

    def _groups(self, cells: Sequence[Cell], measure: str) -> list[Group]:
        """The matrices of `pooled`, by setting; of each group a mean is taken."""
        parts: dict[str, list[Cell]] = {}
        for cell in dict.fromkeys(cells):
            if self.matrix(cell, measure).size:
                parts.setdefault(cell.condition, []).append(cell)
        return [
            {cell.setting: self.matrix(cell, measure) for cell in group}
            for of_condition in parts.values()
            for group in self._by_agents(of_condition)
        ]

    def _joined(self, cells: Sequence[Cell], groups: Sequence[Group], runs: bool) -> pd.DataFrame:
        """The matrices side by side; training seeds that not all of them have are told."""
        joined = _side_by_side(groups, runs)
        seeds = {seed for group in groups for matrix in group.values() for seed in matrix.index}
        if not runs and (dropped := sorted(seeds - set(joined.index))):
            self.left_out[
                f"{cells[0].method}: training seeds {', '.join(map(str, dropped))} lack a setting, a condition or a "
                "task that others have, and are left out of figures over several."
            ] = None
        return joined

    def _by_agents(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells of one condition, those together that met any task in common, with a value or without."""
        groups: list[tuple[set[int], list[Cell]]] = []
        for cell in cells:
            tasks, together = set(self._tasks[self._slices[cell]].tolist()), [cell]
            for known in [group for group in groups if group[0] & tasks]:
                groups.remove(known)
                tasks, together = known[0] | tasks, known[1] + together
            groups.append((tasks, together))
        return [together for _, together in groups]

    def basis(self, cells: Sequence[Cell], measure: str = SCORE) -> tuple[int, int, int]:
        """Training seeds behind a figure, its tasks, and how many there were: some may have no value."""
        seeds, tasks = self.pooled(cells, measure).shape
        met = len({task for cell in cells for task in np.unique(self._tasks[self._slices[cell]])})
        return seeds, tasks, met

    def mixed_games(self) -> Iterator[tuple[Cell, Cell]]:
        """Cells of one setting and condition, which stand side by side, in which the same tasks were other games."""
        firsts: dict[tuple[str, str], Cell] = {}
        for cell in sorted(self._slices, key=lambda cell: not is_trained(cell.method)):
            first = firsts.setdefault((cell.setting, cell.condition), cell)
            if self._game_of[first] != self._game_of[cell] and not self._agree(first, cell, self._bounds[:1]):
                yield first, cell

    def interval(self, cells: Sequence[Cell], measure: str = SCORE) -> Interval | None:
        """(Trimmed) mean with its 95% interval over the seeds and tasks of `pooled`; None without any value."""
        key = (tuple(cells), measure)
        if key not in self._intervals:
            matrix = self.pooled(cells, measure)
            if not matrix.size:
                return None
            self._intervals[key] = self.interval_of(matrix, trim_of(measure))
        return self._intervals[key]

    def interval_of(self, matrix: pd.DataFrame, trim: float = QUARTILE) -> Interval:
        """Trimmed mean of a matrix as of `pooled` or `gain`, with its 95% interval over seeds and agents."""
        return bootstrap_interval(matrix.to_numpy(), seed=SEED, agents=self.agents(matrix.columns), trim=trim)

    def profile_of(
        self, matrix: pd.DataFrame, thresholds: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Share of the scores above each threshold, with pointwise 95% bands over seeds and agents."""
        return performance_profile(matrix.to_numpy(), thresholds, seed=SEED, agents=self.agents(matrix.columns))

    def gain(self, one: Sequence[Cell], other: Sequence[Cell], measure: str = SCORE, *, between: str) -> pd.DataFrame:
        """What one side has more than the other, [S, T]: seed by seed and task by task, where both have a value.

        Args:
            one: A side.
            other: The side that it is compared with.
            measure: What is compared.
            between: Both sides' names, for `left_out`, which is told what only one of them has.
        """
        values, others = self.pooled_alike(one, other, measure)
        gain = (values - others).dropna(how="all").dropna(axis="columns")
        if gain.size:
            self.tell_dropped(between, np.subtract((values.shape, others.shape), gain.shape))
        elif values.size and others.size:
            self.left_out[f"{between}: not compared, since they have no training seed and task in common."] = None
        return gain

    def tell_dropped(self, between: str, dropped: NDArray[np.int64]) -> None:
        """Tells `left_out` how many training seeds and tasks only one of two sides has.

        Args:
            between: Both sides' names.
            dropped: Of either side, its training seeds and its tasks that are not compared, int64 [2, 2].
        """
        told = zip(dropped.sum(axis=0), ("training seed(s)", "task(s)"), strict=True)
        if lacking := [f"{count} {what}" for count, what in told if count]:
            self.left_out[f"{between}: compared without {' and '.join(lacking)} that only one of them has."] = None

    def same_tasks(self, one: Sequence[Cell], other: Sequence[Cell]) -> bool:
        """Whether both sides met the same agents with the same luck, so that their scores may be paired.

        In one setting and condition either may lack some of the tasks.
        """
        mine, theirs = ({(cell.setting, cell.condition): cell for cell in side} for side in (one, other))
        return self._games_of(one) == self._games_of(other) or (
            mine.keys() == theirs.keys()
            and all(self._agree(cell, theirs[place], self._bounds) for place, cell in mine.items())
        )

    def may_stand_together(self, one: Sequence[Cell], other: Sequence[Cell]) -> bool:
        """Whether two methods have a setting of a condition, or a game, in common."""
        places, others = ({(cell.setting, cell.condition) for cell in side} for side in (one, other))
        return bool(places & others or self._games_of(one) & self._games_of(other))

    def _agree(self, one: Cell, other: Cell, bounds: Sequence[str]) -> bool:
        """Whether two cells have tasks in common, and the same bounds on these."""
        for bound in bounds:
            mine, theirs = (self.matrix(side, bound).mean() for side in (one, other))
            gap = (mine - theirs).abs().dropna()
            met_others = gap.empty and mine.notna().any() and theirs.notna().any()
            if met_others or (gap > 10**-DIGITS).any():
                return False
        return True

    def _games_of(self, cells: Sequence[Cell]) -> set[bytes]:
        return {self._game_of[cell] for cell in cells}

    def _column(self, measure: str) -> NDArray[np.float32]:
        if measure not in self._values:
            self._values[measure] = values = self._rows[measure].to_numpy(np.float32)[self._order]
            if infinite := int(np.isinf(values).sum()):
                raise InputError(
                    f"`{measure}` must be finite, or missing, in every row, got {infinite} infinite values"
                )
        return self._values[measure]

    def _identify(self, cell: Cell) -> bytes:
        """What tells one game from another: its agents, and what never intervening and the oracle get out of each.

        Conditions may have it in common, such as those that differ in who plans. Where bounds are not told (in older
        rows), each condition counts as a game of its own.
        """
        chosen = self._slices[cell]
        # Of all seeds together: one may lack tasks.
        tasks, firsts = np.unique(self._tasks[chosen], return_index=True)
        place = self._splits[cell.condition] if self._bounds else cell.condition
        found = [place.encode(), (tasks % self._per_condition).tobytes()]
        for bound in self._bounds:
            # Adding zero makes -0 a 0.
            found.append(((self._column(bound)[chosen][firsts] + BESIDE).round(DIGITS) + 0).tobytes())
        return b"".join(found)


def _in_all(group: Group) -> set[Any]:
    """The training seeds that all settings have."""
    return set.intersection(*(set(matrix.index) for matrix in group.values()))


def _must_be_runs(groups: Sequence[Group]) -> bool:
    """Whether settings of the same tasks have no seed in common."""
    return not all(map(_in_all, groups))


def _side_by_side(groups: Sequence[Group], runs: bool) -> pd.DataFrame:
    """Columns of all groups: of each a mean over its settings seed by seed, or its training runs one by one."""
    if not groups:
        return pd.DataFrame()
    wide = []
    for group in groups:
        # A mean over other settings for some tasks than for others would compare nothing.
        stacked = pd.concat(group.values()).dropna(axis="columns") if len(group) > 1 else next(iter(group.values()))
        if runs:
            named = [Run(setting, int(seed)) for setting, matrix in group.items() for seed in matrix.index]
            stacked = stacked.set_axis(pd.Index(named, dtype=object), axis="index")
        elif len(group) > 1:
            stacked = stacked[stacked.index.isin(_in_all(group))].groupby(level=0).mean()
        wide.append(stacked)
    return pd.concat(wide, axis="columns").dropna(axis="index").sort_index(axis="columns")
