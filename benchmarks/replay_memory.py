"""The memory of a replay of a million transitions of Breakout-MinAtar, by what its pictures are kept in."""

from __future__ import annotations

import resource
import subprocess
import sys

import jax
from _measure import record

from purerl import envs, replay

CAPACITY, ENVS = 1_000_000, 16
DTYPES = {
    "float32, as gymnax shows it": "float32",
    "bfloat16": "bfloat16",
    "uint8": "uint8",
    "bool, packed into bits": "bool",
}


def resident() -> float:
    """Return the most megabytes that this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(case: str) -> None:
    """Allocate the buffer in this process, and say what it takes."""
    env = envs.make("Breakout-MinAtar", ENVS, observation_dtype=DTYPES[case])
    init = replay.uniform(env.spec, CAPACITY).init
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(init)))
    program = jax.jit(init).lower().compile()
    before = resident()
    jax.block_until_ready(program())
    figures = {"buffer_megabytes": round(size / 1e6, 1), "resident_megabytes": round(resident() - before, 1)}
    record("replay_memory", {"case": case, **figures})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for case in DTYPES:  # each in a process of its own: memory once taken is not given back
            subprocess.run([sys.executable, __file__, case], check=True)
