import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from purerl.metrics import Progress, _count, _duration, _score


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(progress, clock, seconds=(3, 3, 3, 3, 3, 3, 3), **latest):
    with progress:
        for number, passed in enumerate(seconds, start=1):
            clock.now += passed
            progress.update(np.int64(1000 * number), **latest)


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(capsys):
    clock = Clock()
    # Updates at 3, 6, ... 21 s; the first to find ten seconds gone is the fourth, at 12 s.
    run(
        Progress(7000, description="dqn", clock=clock),
        clock,
        episode_return=np.float32(21.5),
        evaluation=200,
    )
    first, last = capsys.readouterr().out.splitlines()
    # 3000 steps in the 9 s since the first update, and as many to come.
    assert first == "dqn  57%  4k/7k  333 steps/s  return 21.5  evaluation 200  0:09 left"
    assert last == "dqn  100%  7k/7k  333 steps/s  return 21.5  evaluation 200  in 0:21"


def test_the_speed_leaves_compilation_out(capsys):
    clock = Clock()
    run(Progress(3000, description="ppo", clock=clock), clock, seconds=(60, 1, 1))
    assert "  1k steps/s" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_of_one_update_shows_its_average_speed(capsys):
    clock = Clock()
    run(Progress(1000, description="ppo", clock=clock), clock, seconds=(2,))
    assert capsys.readouterr().out == "ppo  100%  1k/1k  500 steps/s  in 0:02\n"


def test_a_resumed_run_counts_only_its_own_steps(capsys):
    clock = Clock()
    with Progress(2_000_000, description="ppo", clock=clock) as progress:
        progress.update(1_000_000)
        clock.now += 10
        progress.update(1_001_000)
    assert "  100 steps/s" in capsys.readouterr().out.splitlines()[0]


def test_a_row_without_an_episode_keeps_the_last_return(capsys):
    clock = Clock()
    with Progress(10, description="a", clock=clock) as progress:
        progress.update(1, episode_return=5.0)
        progress.update(2, episode_return=float("nan"))
        progress.update(3)
    assert "return 5" in capsys.readouterr().out


def test_an_interrupted_run_says_so(capsys):
    clock = Clock()

    def interrupted():
        with Progress(1000, description="a", clock=clock) as progress:
            clock.now += 5
            progress.update(500)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().out == "a  50%  500/1k  100 steps/s  stopped after 0:05\n"


def test_switched_off_it_prints_nothing(capsys):
    clock = Clock()
    file = io.StringIO()
    console = Console(file=file, force_terminal=True)
    run(Progress(7000, description="a", enabled=False, clock=clock), clock)
    run(Progress(7000, description="a", enabled=False, console=console, clock=clock), clock)
    assert capsys.readouterr().out + file.getvalue() == ""


@pytest.mark.parametrize("width", [1, 10, 40, 80, 200])
def test_a_terminal_gets_one_live_line_however_narrow(width):
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=10, no_color=True)
    progress = Progress(7000, description="dqn [red]", console=console, clock=clock)
    run(progress, clock, episode_return=21.5, evaluation=200.0)
    shown = file.getvalue()
    # The cursor goes up a line only where a frame took two.
    assert "\x1b[1A" not in shown
    assert shown.count("\n") == 1
    if width == 200:
        assert all(part in shown for part in ("dqn [red]", "57%", "100%"))
        assert "4k/7k  333 steps/s  return 21.5  evaluation 200  0:09 left" in shown
        assert "7k/7k  333 steps/s  return 21.5  evaluation 200  in 0:21" in shown


def test_the_last_state_is_shown_on_a_terminal_though_frames_are_spared():
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Progress(1000, description="a", console=console, clock=clock) as progress:
        for step in range(1, 1001):
            clock.now += 0.001
            progress.update(step)
    assert file.getvalue().count("steps/s") < 15
    assert "1k/1k" in file.getvalue()


def test_a_log_is_no_terminal_though_colour_is_forced():
    script = """
import sys
from purerl.metrics import Progress
with Progress(10, description="a") as progress:
    progress.update(10)
assert "rich" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"FORCE_COLOR": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stderr == ""
    assert done.stdout.startswith("a  100%  10/10")
    assert "\x1b" not in done.stdout


def test_numbers_are_short():
    assert [_count(n) for n in (0, 999, 999.6, 120_000, 999_600, 1.25e6, 3e9, 2e12)] == [
        *("0", "999", "1k", "120k", "1M", "1.25M", "3G", "2T")
    ]
    assert [_score(v) for v in (0.0, -0.12345, 9999.6, 123456.7)] == [*("0", "-0.1235", "10000", "123457")]
    assert [_duration(s) for s in (0, 59.6, 600, 36_061)] == ["0:00", "1:00", "10:00", "10:01:01"]


def test_a_total_that_is_not_positive_is_named():
    with pytest.raises(ValueError, match="total_steps is 0; it takes a positive number"):
        Progress(0, description="a")
