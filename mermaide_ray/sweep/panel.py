"""What a person sees of a sweep while it goes on: one live panel in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mermaide_ray.progress import LOG_EVERY, clock, count

# Trials named one by one below the counts.
_MOST_LINES = 8


@dataclass
class _Trial:
    state: str = "running"
    env_steps: int = 0
    score: float | None = None


class Panel:
    """Counts of a sweep's trials, the best so far, time left.

    Args:
        console: Where to.
        name: The sweep's.
        num_trials: Trials in all.
        env_steps: Environment steps of all trials, if none is stopped early.
        metric: What "best" means.
    """

    def __init__(self, console: Console, name: str, num_trials: int, env_steps: int, metric: str) -> None:
        self._console, self._name, self._num, self._total, self._metric = console, name, num_trials, env_steps, metric
        self._trials: dict[str, _Trial] = {}
        self._began: dict[str, int] = {}
        self._started = self._last = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Panel:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def known(self, trial: str, env_steps: int, score: float | None) -> None:
        """A trial was done by an earlier attempt."""
        self._trials[trial] = _Trial("done", env_steps, score)
        self._began[trial] = env_steps

    def started(self, trial: str, is_new: bool) -> None:
        """A trial runs (again).

        Args:
            trial: Its name.
            is_new: Whether no earlier attempt has begun it.
        """
        self._trials.setdefault(trial, _Trial()).state = "running"
        if is_new:
            self._began.setdefault(trial, 0)
        self._show()

    def told(self, trial: str, env_steps: int, score: float | None, failure: str | None) -> None:
        """A trial has reached a milestone, or failed."""
        known = self._trials.setdefault(trial, _Trial())
        # Of a trial that goes on, the first milestone told may be an earlier attempt's: it is no measure of speed.
        self._began.setdefault(trial, env_steps)
        known.env_steps = env_steps
        if failure and known.state != "failed":
            known.state = "failed"
            self._console.print(Text(f"failed: {trial}: {failure}", style="red"), soft_wrap=True)
        if not failure:
            known.score = score
        self._show()

    def ended(self, trial: str) -> None:
        """A trial is over."""
        known = self._trials.setdefault(trial, _Trial())
        if known.state != "failed":
            known.state = "done"
        self._show(at_once=True)

    def died(self, trial: str, error: str | None) -> None:
        """A trial's process died once too often; `error` says of what, as far as is known."""
        self._trials.setdefault(trial, _Trial()).state = "failed"
        why = f"its process died ({error})" if error else "its process died"
        self._console.print(Text(f"failed: {trial}: {why}", style="red"), soft_wrap=True)
        self._show(at_once=True)

    def count(self, state: str) -> int:
        """Trials in a state: running, done or failed."""
        return sum(trial.state == state for trial in self._trials.values())

    def best(self) -> tuple[str, float] | None:
        """The trial with the highest metric so far."""
        scored = {name: t.score for name, t in self._trials.items() if t.score is not None and t.state != "failed"}
        name = max(scored, key=lambda key: scored[key], default=None)
        return None if name is None else (name, scored[name])

    def line(self) -> str:
        """All of it in one line."""
        done, now = sum(trial.env_steps for trial in self._trials.values()), time.monotonic()
        fresh = done - sum(self._began.values())
        parts = [
            f"{self._name}  {self.count('done')} done, {self.count('running')} running, {self.count('failed')} failed "
            f"of {self._num} trials",
            f"{count(done)} of {count(self._total)} env steps",
        ]
        if best := self.best():
            parts.append(f"best {self._metric} {best[1]:.3f}" + (f" ({best[0]})" if self._num > 1 else ""))
        if fresh > 0:
            parts.append(f"{clock((self._total - done) * (now - self._started) / fresh)} left")
        return "  ".join(parts)

    def _show(self, at_once: bool = False) -> None:
        if self._live:
            table = Table.grid(padding=(0, 2))
            running = [(name, trial) for name, trial in self._trials.items() if trial.state == "running"]
            for name, trial in running[:_MOST_LINES]:
                score = "" if trial.score is None else f"{self._metric} {trial.score:.3f}"
                table.add_row("  " + name, f"{count(trial.env_steps)} env steps", score)
            whole = Table.grid()
            whole.add_row(Text(self.line(), no_wrap=True, overflow="ellipsis"))
            whole.add_row(table)
            self._live.update(whole)
        elif at_once or time.monotonic() - self._last > LOG_EVERY:
            self._last = time.monotonic()
            self._console.print(Text(self.line()), soft_wrap=True)
