"""A process that goes on with what another one saved: reads lines of `CASE<tab>DIRECTORY`, and answers each."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from contract_cases import CASES

from purerl import checkpoint, envs, loop
from purerl.base import cast_hypers

NUM_ENVS, LENGTH = 3, 2


def chunk(env, agent):
    """Return a program that advances a run by a quarter of the sixty iterations of the contract's whole runs."""

    def advance(run, hypers):
        return loop.advance(run, agent, env, hypers, iterations=15, length=LENGTH)[0]

    return jax.jit(advance)


def begin(env, agent):
    """Return a program that begins a run."""
    return jax.jit(lambda key, hypers: loop.begin(key, agent, env, hypers))


def go_on(case, directory: Path) -> None:
    """Restore the latest run in a folder, advance it by two chunks, and save it there."""
    env = envs.make(case.env, NUM_ENVS)
    agent = case.make(env.spec)
    like = jax.eval_shape(begin(env, agent), jax.random.key(0), case.hypers)
    found = checkpoint.restore(directory, {"run": like, "hypers": jax.eval_shape(lambda: cast_hypers(case.hypers))})
    run, advance = found["run"], chunk(env, agent)
    for _ in range(2):
        run = advance(run, found["hypers"])
    checkpoint.save({"run": run}, directory, 60)


if __name__ == "__main__":
    cases = {case.name: case for case in CASES}
    for line in sys.stdin:
        name, directory = line.rstrip("\n").split("\t")
        go_on(cases[name], Path(directory))
        print("done", flush=True)
