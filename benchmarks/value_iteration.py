"""Sweeps of value iteration over square gridworlds of 10^2, 10^4 and 10^6 states, against the same sweep in NumPy.

A sweep reads a successor, a reward and a value for each of four actions and writes one value. The floor is the time to
copy as many bytes: 4 x (4 + 4 + 4) + 4 a state, the values of successors counted as if they lay in order.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from _measure import record, seconds

from purerl import planning
from purerl.mdps import Successors

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
DISCOUNT = 0.99


def gridworld(side):
    """Return successors [S, 4], rewards [S, 4] and ends [S] of a grid whose last cell is the goal, -1 a step."""
    row, column = np.divmod(np.arange(side * side), side)
    cells = [(np.clip(row + down, 0, side - 1), np.clip(column + right, 0, side - 1)) for down, right in MOVES]
    successor = np.stack([row * side + column for row, column in cells], axis=1).astype(np.int32)
    return successor, np.full((side * side, 4), -1.0, np.float32), np.arange(side * side) == side * side - 1


def by_numpy(successor, reward, terminal, sweeps):
    """Return the values after so many sweeps."""
    value = np.zeros(len(reward), np.float32)
    for _ in range(sweeps):
        value = np.where(terminal, np.float32(0.0), (reward + np.float32(DISCOUNT) * value[successor]).max(axis=1))
    return value


def copying(states, sweeps):
    """Return seconds to copy as many bytes as the sweeps touch."""
    there = np.empty(states * (4 * 12 + 4) // 2, np.uint8)
    here = np.zeros_like(there)
    began = time.perf_counter()
    for _ in range(sweeps):
        np.copyto(there, here)
    return time.perf_counter() - began


def main() -> None:
    """Time both, and check that they agree."""
    for side, sweeps in ((10, 2_000), (100, 2_000), (1_000, 40)):
        successor, reward, terminal = gridworld(side)
        transition = Successors(state=jnp.asarray(successor)[..., None], probability=jnp.ones((side * side, 4, 1)))
        mdp = transition, jnp.asarray(reward), jnp.asarray(terminal), jnp.float32(DISCOUNT)
        solve = jax.jit(lambda *mdp: planning.value_iteration(*mdp, tolerance=-1.0, max_iterations=sweeps).value)  # noqa: B023
        ours = seconds(lambda: solve(*mdp), repeats=5)  # noqa: B023
        times = []
        for _ in range(3):
            began = time.perf_counter()
            expected = by_numpy(successor, reward, terminal, sweeps)
            times.append(time.perf_counter() - began)
        np.testing.assert_allclose(solve(*mdp), expected, rtol=1e-5)
        figures = {
            "microseconds_per_sweep": round(1e6 * ours["wall"] / sweeps, 2),
            "numpy_microseconds_per_sweep": round(1e6 * sorted(times)[1] / sweeps, 2),
            "ratio": round(sorted(times)[1] / ours["wall"], 2),
            "copying_microseconds": round(1e6 * copying(side * side, sweeps) / sweeps, 2),
        }
        record("value_iteration", {"case": f"{side * side} states", **figures})


if __name__ == "__main__":
    main()
