"""What a person sees of a run while it goes on: one live line in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mermaide_ray.metrics import RETURN, is_validation, k_of

# Seconds between lines where the output is no terminal.
LOG_EVERY = 15.0
_LOG_WIDTH = 100


def terminal() -> Console:
    """The terminal with its own width; where there is none (a pipe, a log), room for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


class Progress:
    """The progress of one training run.

    Args:
        console: Where to.
        name: The method.
        total: Env steps of the whole run.
        done: Env steps done before (a resumed run).
    """

    def __init__(self, console: Console, name: str, total: int, done: int = 0) -> None:
        self._console, self._name, self._total, self._first = console, name, total, done
        self._started = self._last = time.monotonic()
        self._scores: dict[int, float] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if self._live:
            self._live.start()

    def update(self, iteration: int, env_steps: int, told: Mapping[str, float]) -> None:
        """Tells of one iteration."""
        scored = {k_of(key): value for key, value in told.items() if is_validation(key)}
        self._scores |= scored
        now = time.monotonic()
        line = self._line(iteration, env_steps, told, now)
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif scored or now - self._last > LOG_EVERY:
            self._last = now
            self._console.print(line, soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live:
            self._live.stop()

    def _line(self, iteration: int, env_steps: int, told: Mapping[str, float], now: float) -> str:
        rate = (env_steps - self._first) / max(now - self._started, 1e-9)
        left = (self._total - env_steps) / max(rate, 1e-9)
        scores = "  ".join(f"K={k} {value:.3f}" for k, value in self._scores.items())
        return (
            f"{self._name}  iteration {iteration}  {count(env_steps)} of {count(self._total)} env steps  "
            f"{rate / 1e3:.1f}k/s  return {told.get(RETURN, float('nan')):.1f}  "
            f"{f'validation score {scores}  ' if scores else ''}{clock(left)} left"
        )


def tell(console: Console, text: str) -> None:
    """Prints sentences: broken between words in a terminal, one line each in a log, where a program may read them."""
    console.print(Text(text), soft_wrap=not console.is_terminal)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(number: float) -> str:
    """A large number as people say it: 950, 1.9k, 2.50M."""
    if number < 1e3:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"
