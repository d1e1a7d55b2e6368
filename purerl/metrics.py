"""What is seen while a run trains: one live line on a terminal, a few plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsInt

from purerl.checks import is_count, require_flag, require_function, require_kind

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.1


class Progress:
    """A context manager that shows steps, steps per second, the latest returns and the time left.

    On a terminal it is one live line (rich); elsewhere a plain line at most every ten seconds
    and one at the end; with `enabled=False` nothing. `total_steps` and `update`'s `steps_done`
    count the same thing, which `unit` names. Steps per second are counted from the first update on,
    since what comes before it is mostly compilation. `console` and `clock` (seconds) are for tests
    and for those who print elsewhere. Raises ValueError where `total_steps` is not positive.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        description: str,
        unit: str = "steps",
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not is_count(total_steps):
            raise ValueError(f"total_steps is {total_steps!r}; it takes a positive number, a whole one.")
        for name, text in {"description": description, "unit": unit}.items():
            require_kind(name, text, str, wanted="text")
        require_flag("enabled", enabled)
        require_function("clock", clock, wanted="a function that returns seconds, such as time.monotonic")
        self.total_steps = int(total_steps)
        self.description = description
        self.unit = unit
        self.enabled = enabled
        self._console = console
        self._clock = clock
        self._live: Any = None
        self._steps = 0
        self._returns: dict[str, float] = {}
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Progress:
        self._started = self._shown = self._now = self._clock()
        if self.enabled and self._is_terminal():
            self._live = _live_line(self._console)
            self._live.add_task(self.description, total=self.total_steps, status=self._status())
            self._live.start()
        return self

    def update(
        self,
        steps_done: SupportsInt,
        *,
        episode_return: SupportsFloat | None = None,
        evaluation: SupportsFloat | None = None,
    ) -> None:
        """Shows that `steps_done` steps are done; a return of None or NaN keeps the last one."""
        if not self.enabled:
            return
        self._steps, self._now = int(steps_done), self._clock()
        self._first = self._first or (self._steps, self._now)
        for name, value in (("return", episode_return), ("evaluation", evaluation)):
            if value is not None and not math.isnan(float(value)):
                self._returns[name] = float(value)
        pause = SECONDS_BETWEEN_FRAMES if self._live else SECONDS_BETWEEN_LINES
        if self._now - self._shown >= pause:
            self._show()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.enabled:
            return
        self._now = self._clock()
        self._show(ending="stopped after" if kind else "in")
        if self._live:
            self._live.stop()

    def _is_terminal(self) -> bool:
        # Not rich's answer for stdout: FORCE_COLOR, common in CI, would make a log file a terminal.
        if self._console is None:
            return sys.stdout.isatty()
        return self._console.is_terminal

    def _show(self, ending: str | None = None) -> None:
        self._shown = self._now
        if self._live:
            task = self._live.task_ids[0]
            status = self._status(ending)
            self._live.update(task, completed=self._steps, status=status, refresh=True)
            return
        percent = min(100, 100 * self._steps // self.total_steps)
        line = f"{self.description}  {percent}%  {self._status(ending)}"
        print(line, file=self._console.file if self._console else sys.stdout, flush=True)

    def _status(self, ending: str | None = None) -> str:
        parts = [f"{_count(self._steps)}/{_count(self.total_steps)}"]
        speed = self._speed(ending is not None)
        if speed:
            parts.append(f"{_count(speed)} {self.unit}/s")
        parts += [f"{name} {_score(value)}" for name, value in self._returns.items()]
        if ending:
            parts.append(f"{ending} {_duration(self._now - self._started)}")
        elif speed:
            parts.append(f"{_duration(max(0, self.total_steps - self._steps) / speed)} left")
        return "  ".join(parts)

    def _speed(self, ended: bool) -> float | None:
        # One update only: what is known is the whole run's average, compilation included.
        steps, since = self._first or (0, self._started)
        if ended and steps == self._steps:
            steps, since = 0, self._started
        seconds = self._now - since
        return (self._steps - steps) / seconds if self._steps > steps and seconds > 0 else None


def _live_line(console: Console | None) -> Any:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    def narrow() -> Column:
        return Column(no_wrap=True, overflow="ellipsis")

    return RichProgress(
        TextColumn("{task.description}", markup=False, table_column=narrow()),
        BarColumn(bar_width=24),
        TaskProgressColumn(table_column=narrow()),
        TextColumn("{task.fields[status]}", markup=False, table_column=narrow()),
        console=console,
        auto_refresh=False,
    )


def _count(number: float | int) -> str:
    for unit, scale in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        # 999.5 and more would be rounded to the next unit's 1.
        if number < 999.5 * scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number / 1e12:.3g}T"


def _score(value: float | int) -> str:
    # Four digits, but never 1.234e+04.
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def _duration(seconds: float | int) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
