"""What the benchmarks share: time a compiled program, and write one JSON line per figure."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def seconds(program: Callable[[], Any], *, repeats: int = 5) -> dict[str, float]:
    """Return the median CPU and wall seconds of `program()` over `repeats` runs, after one that is not counted.

    CPU seconds are all threads' together: on a shared machine they are steadier than wall time.
    """
    jax.block_until_ready(program())
    cpu, wall = [], []
    for _ in range(repeats):
        cpu_began, wall_began = time.process_time(), time.perf_counter()
        jax.block_until_ready(program())
        cpu.append(time.process_time() - cpu_began)
        wall.append(time.perf_counter() - wall_began)
    return {"cpu": statistics.median(cpu), "wall": statistics.median(wall)}


def in_turn(
    ours: Callable[[], Any], peers: dict[str, tuple[str, str]], *, repeats: int
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return the (wall, CPU) seconds of `ours` and of other libraries' programs, run by run in turn, and the most
    memory in MiB that each process has had, compilation included.

    A peer is (a Python that has the library, a script in which `program()` is what is timed, compiled by one call).
    """
    jax.block_until_ready(ours())
    taken: dict[str, list[Any]] = {name: [] for name in ("purerl", *peers)}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, (python, script) in peers.items():
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes[name] = stack.enter_context(subprocess.Popen([python, "-c", script + _SERVE], **pipes))
            _answer(processes[name])
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(ours())
            taken["purerl"].append((time.perf_counter() - wall, time.process_time() - cpu))
            for name, process in processes.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                taken[name].append(tuple(float(number) for number in _answer(process)))
        peaks = {name: peak_memory_mib(process.pid) for name, process in processes.items()}
        for process in processes.values():
            process.stdin.write("\n")
            process.stdin.flush()
    return taken, peaks | {"purerl": peak_memory_mib("self")}


def peak_memory_mib(process: int | str) -> int:
    """Return the most memory that a process has had, in MiB (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def compared(taken: dict[str, list[Any]], steps: int) -> dict[str, float]:
    """Return, of what `in_turn` took of programs of so many steps, speeds, and medians of the ratios pair by pair."""
    figures: dict[str, float] = {}
    for name, times in taken.items():
        figures[f"{name}_steps_per_second"] = round(steps / statistics.median(wall for wall, _ in times))
        if name != "purerl":
            pairs = list(zip(times, taken["purerl"], strict=True))
            figures[f"ratio_to_{name}"] = round(statistics.median(theirs[0] / ours[0] for theirs, ours in pairs), 2)
            figures[f"cpu_ratio_to_{name}"] = round(statistics.median(theirs[1] / ours[1] for theirs, ours in pairs), 2)
    return figures


_SERVE = """
import time, jax
jax.block_until_ready(program())
print("answer", flush=True)
while input():
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(program())
    print("answer", time.perf_counter() - wall, time.process_time() - cpu, flush=True)
"""


def _answer(process: Any) -> list[str]:
    """Return the words of the next answer; a library may print other lines before it."""
    for line in process.stdout:
        if line.startswith("answer"):
            return line.split()[1:]
    raise RuntimeError(f"{process.args[0]} ended without an answer")


def machine() -> str:
    """Return the processor's name and how many cores of it there are, or the accelerator's."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    names = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")] or names

    return f"{names[0]}, {os.cpu_count()} cores"


def record(benchmark: str, figures: dict[str, Any]) -> None:
    """Print the figures and put them in the place of the benchmark's former line in results/<benchmark>.jsonl."""
    line = {"benchmark": benchmark, **figures, "machine": machine(), "date": date.today().isoformat()}
    line |= {"python": platform.python_version(), "jax": jax.__version__}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.jsonl"
    former = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
    kept = [row for row in former if row.get("case") != line.get("case") or row["machine"] != line["machine"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, line]))
    print(json.dumps(line), flush=True)
