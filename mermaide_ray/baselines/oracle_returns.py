"""The two ends of the normalised score, per task: return of the oracle and of no intervention. Kept on disk.

Every evaluation of the same agents needs the same numbers, and the choice of the rules is what takes the time. A file
is named by a hash of all that the numbers depend on, the source of the game and of the agents included, so that it is
never stale: it is there, or it is computed again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mermaide_ray
from mermaide_ray.agents import family_named
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.baselines.oracles import Rule, best_rules, oracle_rules, returns_of
from mermaide_ray.errors import RunFault
from mermaide_ray.experiment import Experiment, Split
from mermaide_ray.noise import Key
from mermaide_ray.storage import whole_file

# What decides a game's numbers, within the package; settings and the rules themselves are hashed by value.
_SOURCES = ("agents/*.py", "baselines/*.py", "envs/incentive.py", "lockstep.py", "noise.py", "trajectory.py")


@dataclass(frozen=True)
class OracleReturns:
    """What the best rule for each task and what doing nothing earn on the query episodes.

    Attributes:
        ids: Task ids, [B].
        oracle_return: float32 [B], mean per episode, undiscounted.
        never_return: float32 [B], the same without any intervention.
        rules: Name of each task's best rule, [B].
    """

    ids: tuple[int, ...]
    oracle_return: NDArray[np.float32]
    never_return: NDArray[np.float32]
    rules: tuple[str, ...]


def oracle_returns(
    experiment: Experiment,
    split: Split,
    ids: Sequence[int],
    episodes: int,
    key: Key,
    cache: Path | None = None,
    rules: Sequence[Rule] | None = None,
) -> OracleReturns:
    """Chooses the best rule for each task, then scores it and no intervention on the query dice.

    Args:
        experiment: The game and the agents.
        split: Of the tasks.
        ids: Task ids, [B].
        episodes: E, query episodes per task.
        key: Of the query dice, as given to `noise.deal` for the methods that are scored.
        cache: Folder to keep the result in, and to look in first.
        rules: To choose from; `oracle_rules` if not given.

    Raises:
        RunFault: The result can't be written to `cache`.
    """
    rules = tuple(rules or oracle_rules(experiment.environment))
    path = None
    if cache is not None:
        path = cache / f"oracle-{_digest(experiment, split, ids, episodes, key, rules)}.npz"
        if (found := _read(path, tuple(ids))) is not None:
            return found
    tasks = AgentDistribution(experiment).tasks(split, ids)
    best = best_rules(experiment, split, tasks, rules)
    pairs = [(rule, Rule(0)) for rule in best]
    means = returns_of(experiment.environment, tasks, pairs, key, episodes).mean(2).numpy()
    result = OracleReturns(tuple(ids), means[:, 0].copy(), means[:, 1].copy(), tuple(str(rule) for rule in best))
    if path is not None:
        _write(path, result)
    return result


def _digest(
    experiment: Experiment, split: Split, ids: Sequence[int], episodes: int, key: Key, rules: Sequence[Rule]
) -> str:
    """Hash of everything that the result depends on."""
    settings = {
        "environment": experiment.environment.model_dump(mode="json"),
        # In the order given: it decides which family a task's draw means.
        "agents": experiment.agents.model_dump(mode="json"),
        "training_seed": experiment.seed if split == "train" else None,
        "query": [split, list(ids), episodes, list(key)],
        "rules": [repr(rule) for rule in rules],
    }
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=12)
    package = Path(inspect.getfile(mermaide_ray)).parent
    sources = [path for pattern in _SOURCES for path in sorted(package.glob(pattern))]
    for name in experiment.agents.families:
        if ":" in name:
            family_named(name)
            sources.append(Path(inspect.getfile(sys.modules[name.partition(":")[0]])))
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path, ids: tuple[int, ...]) -> OracleReturns | None:
    """A kept result; None where there is none, or none that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            result = OracleReturns(ids, kept["oracle_return"], kept["never_return"], tuple(kept["rules"].tolist()))
            complete = tuple(kept["ids"].tolist()) == ids
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # truncated, or not ours
        return None
    sizes = {len(result.oracle_return), len(result.never_return), len(result.rules), len(ids)}
    return result if complete and len(sizes) == 1 else None


def _write(path: Path, result: OracleReturns) -> None:
    """Keeps a result, whole or not at all."""
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                ids=np.array(result.ids, dtype=np.int64),
                oracle_return=result.oracle_return,
                never_return=result.never_return,
                rules=np.array(result.rules),
            )
    except OSError as error:
        raise RunFault(
            f"the oracle's returns must be kept in a folder that can be written, got {path.parent} ({error.strerror})"
        ) from None
