"""What the benchmarks share: time a compiled program, and write one JSON line per figure."""

from __future__ import annotations

import json
import os
import platform
import statistics
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
