"""What a row is, and what is right and is passed beside the one thing that is wrong."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl import envs, networks
from purerl.base import Box, Discrete, Spec


class Row(NamedTuple):
    """One bad input."""

    label: str
    call: Callable[[], Any]
    error: type[Exception]
    words: tuple[str, ...]  # all of which the message holds, the argument's name among them


def row(label: str, call: Callable[[], Any], error: type[Exception], *words: str) -> Row:
    return Row(label, call, error, words)


FLOAT, WHOLE = np.dtype(np.float32), np.dtype(np.int32)
VECTOR = Box((4,), FLOAT, -np.inf, np.inf)
FORCE = Box((1,), FLOAT, -2.0, 2.0)
IMAGE = Box((10, 10, 3), np.dtype(bool), 0, 1)

TABLE = Spec(Discrete(6), Discrete(3), 2)
CART = Spec(VECTOR, Discrete(2), 2)
PENDULUM = Spec(Box((3,), FLOAT, -1.0, 1.0), FORCE, 2)
PICTURE = Spec(IMAGE, Discrete(3), 2)


@functools.cache
def env(name: str = "CliffWalking-purerl", num_envs: int = 2) -> envs.Env:
    return envs.make(name, num_envs)


def key() -> Any:
    return jax.random.key(0)


def keys(seeds: int = 2) -> Any:
    return jax.random.split(key(), seeds)


def old_key() -> Any:
    """Return a key of the kind that jax had before."""
    return jax.random.PRNGKey(0)


def values(spec: Spec = CART) -> Any:
    return networks.action_values(spec, (4,))


def actor(spec: Spec = CART) -> Any:
    return networks.policy(spec, (4,))


def critic(spec: Spec = CART) -> Any:
    return networks.state_values(spec, (4,))


@functools.cache
def folder() -> Path:
    """Return a folder of this process, in which is a file named "file"."""
    made = Path(tempfile.mkdtemp(prefix="purerl-bad-inputs-"))
    (made / "file").write_text("text")
    return made
