"""Start a script as several processes of this machine that are one run, and start all again when one is lost.

    python -m purerl.launch --processes 2 experiments/ppo.py --mesh data=2 --out runs/two --resume auto

What comes after the script are its own arguments. The first process speaks; of the others only errors are heard. When
one ends with an error or is killed, the others are ended too, and all begin anew, up to `--restarts` times, with the
same arguments: --resume auto lets them go on from the last checkpoint. Bad input (status 2) is not tried again. Ctrl-C
and SIGTERM are passed on: all save and end.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from purerl import distributed
from purerl.checks import require_count

SECONDS_TO_FOLLOW = 3.0  # in which the others may end by themselves, once one has failed
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BAD_INPUT = 2  # the status of what would fail again


def launch(command: Sequence[str], processes: int, *, devices: int = 0, restarts: int = 3, heartbeat: int = 0) -> int:
    """Run a command as so many processes until all have ended well, and return the status: 0, or that of a failure.

    Each has `devices` of the CPU (its share of the cores if 0). Raises ValueError for counts out of range.
    """
    for name, count, least in [
        ("processes", processes, 1),
        ("devices", devices, 0),
        ("restarts", restarts, 0),
        ("heartbeat", heartbeat, 0),
    ]:
        require_count(name, count, least=least)
    for attempt in range(restarts + 1):
        with _Gang(command, processes, devices=devices, heartbeat=heartbeat) as gang:
            status = gang.wait()
        if status in (0, BAD_INPUT) or gang.asked_to_end:
            return status
        left = restarts - attempt
        what = f"begins again, {left} more time{'s' * (left > 1)} if need be" if left else "is given up"
        print(f"launch: {gang.lost}; the run {what}", file=sys.stderr, flush=True)
    return status


class _Gang:
    """The processes of one attempt; a context, at whose end none is left."""

    def __init__(self, command: Sequence[str], processes: int, *, devices: int, heartbeat: int):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared = os.environ | {
            distributed.COORDINATOR: f"127.0.0.1:{_free_port()}",
            distributed.PROCESSES: str(processes),
            distributed.LAUNCHER: str(os.getpid()),
            "JAX_NUM_CPU_DEVICES": str(devices or max(1, cores // processes)),
        }
        shared |= {distributed.HEARTBEAT: str(heartbeat)} if heartbeat else {}
        self.asked_to_end, self.lost = False, ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._former = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        for number in range(processes):
            if self.asked_to_end:
                break
            process = subprocess.Popen(
                [sys.executable, *command],
                env=shared | {distributed.PROCESS: str(number)},
                stdout=None if number == 0 else subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C comes once, from here
            )
            self._processes.append(process)

    def _pass_on(self, number: int, _: object) -> None:
        self.asked_to_end = True
        for process in self._processes:
            process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def wait(self) -> int:
        """Wait until all have ended, and return 0, or the status of the first that failed, and see to the others."""
        while True:
            statuses = [process.poll() for process in self._processes]
            failed = [number for number, status in enumerate(statuses) if status]
            if failed:
                return self._follow(failed[0])
            if all(status == 0 for status in statuses):
                return 0
            time.sleep(0.05)

    def _follow(self, first: int) -> int:
        status = self._processes[first].returncode
        self.lost = f"process {first} " + (f"ended with status {status}" if status > 0 else _killed(-status))
        until = time.monotonic() + SECONDS_TO_FOLLOW
        while time.monotonic() < until and any(process.poll() is None for process in self._processes):
            time.sleep(0.05)
        if any(process.poll() == BAD_INPUT for process in self._processes):
            return BAD_INPUT
        return status if status > 0 else 128 - status

    def __enter__(self) -> _Gang:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for number, former in self._former.items():
            signal.signal(number, former)


def _killed(number: int) -> str:
    return f"was killed by {signal.Signals(number).name}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Start what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m purerl.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument(
        "--devices", type=int, default=0, help="of the CPU for each; its share of the cores if not given"
    )
    parser.add_argument("--restarts", type=int, default=3, help="how often all are started again when one is lost")
    parser.add_argument("--heartbeat", type=int, default=0, help="seconds after which one that is silent is lost")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    asked = parser.parse_args(arguments)
    if not asked.script.is_file():
        parser.error(f"script is {asked.script}, which is no file")
    try:
        return launch(
            [str(asked.script), *asked.arguments],
            asked.processes,
            devices=asked.devices,
            restarts=asked.restarts,
            heartbeat=asked.heartbeat,
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
