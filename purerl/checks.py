"""What is given is what is taken: checks, made once, where a script builds or starts something.

What they raise is one sentence that names the argument, what it got and what it takes. This module imports nothing of
jax, so that those who only read results need not wait for it; what knows of agents and environments is in `base`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """What a number may be."""

    wanted: str
    holds: Callable[[float], bool]


FINITE = Range("a finite number", math.isfinite)
NOT_NEGATIVE = Range("a number of at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Range("a number above 0", lambda value: 0 < value < math.inf)
AT_LEAST_ONE = Range("a number of at least 1", lambda value: 1 <= value < math.inf)
FRACTION = Range("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("a number from 0 to 1, less than 1", lambda value: 0 <= value < 1)

# What hypers take, by the names that mean the same in every agent: beyond it a value can only be a mistake. One that
# makes a run diverge is none, and a number that is not here takes whatever is finite.
RANGES = {
    **dict.fromkeys(["discount", "trace_decay", "learning_rate_decay", "target_rate"], FRACTION),
    "backtrack_coefficient": FRACTION,
    **dict.fromkeys(["adam_b1", "adam_b2"], BELOW_ONE),  # at 1 the moments' bias is divided by 0
    **dict.fromkeys(["learning_rate", "learning_rate_end_fraction", "learning_rate_horizon"], NOT_NEGATIVE),
    **dict.fromkeys(["exploration", "exploration_start", "exploration_end", "exploration_horizon"], NOT_NEGATIVE),
    **dict.fromkeys(["value_weight", "entropy_weight", "critic_speed", "adam_eps"], NOT_NEGATIVE),
    **dict.fromkeys(["clip", "value_clip", "max_kl", "target_kl", "delta", "damping", "threshold"], NOT_NEGATIVE),
    **dict.fromkeys(["max_gradient_norm", "huber_delta", "target_period"], POSITIVE),
    **dict.fromkeys(["prior_deviation", "reward_deviation"], POSITIVE),
    "rate_adaptation": AT_LEAST_ONE,
    **dict.fromkeys(["initial_value", "prior_mean", "baseline"], FINITE),
}


def require_in_range(group: str, name: str, value: Any) -> None:
    """Raise a ValueError unless `value`, a number, is what the hyper `name` takes; the message names `group.name`."""
    range_ = RANGES.get(name, FINITE)
    if not range_.holds(float(value)):
        raise ValueError(f"{group}.{name} is {value}; it takes {range_.wanted}")


def shown(value: Any) -> str:
    """Return a value as a message shows it: its repr, or what it is if that is long."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = f"the function {value.__name__}" if inspect.isfunction(value) else repr(value)
    told = len(text) <= 80 and "\n" not in text and " at 0x" not in text  # an address tells nothing
    return text if told else f"of type {type(value).__name__}"


def require_kind(name: str, value: Any, kind: Any, *, wanted: str) -> None:
    """Raise a TypeError that names the argument and what is `wanted` unless `value` is of the type `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; it takes {wanted}")


def require_function(name: str, value: Any, *, wanted: str) -> None:
    """Raise a TypeError that names the argument and what is `wanted` unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} is {shown(value)}; it takes {wanted}")


def is_count(count: Any, *, least: int = 1) -> bool:
    """Whether this is a whole number, and no bool, of at least `least`."""
    return isinstance(count, int | np.integer) and not isinstance(count, bool) and bool(count >= least)


def require_count(name: str, count: Any, *, least: int = 1) -> None:
    """Raise a ValueError that names the argument unless `count` is a whole number of at least `least`."""
    if not is_count(count, least=least):
        raise ValueError(f"{name} is {count!r}; it takes a whole number of at least {least}")


def require_flag(name: str, flag: Any) -> None:
    """Raise a TypeError that names the argument unless it is True or False: any text is true, "no" as well."""
    require_kind(name, flag, bool | np.bool_, wanted="True or False")


def require_number(name: str, number: Any, *, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise a ValueError that names the argument unless it is a finite number within the bounds."""
    bounds = f" of at least {least:g}" if most == math.inf else f" from {least:g} to {most:g}"
    wanted = "a finite number" if least == -math.inf and most == math.inf else f"a number{bounds}"
    known = isinstance(number, int | float) or hasattr(number, "__array__")
    if not known or isinstance(number, bool) or np.shape(number) != () or np.asarray(number).dtype.kind not in "iuf":
        raise ValueError(f"{name} is {shown(number)}; it takes {wanted}")
    value = np.asarray(number).item()
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} is {value}; it takes {wanted}")


def path_of(name: str, value: Any) -> Path:
    """Return the path that text or a Path names; a TypeError that names the argument for anything else."""
    require_kind(name, value, str | os.PathLike, wanted="a path, as text or a Path")
    return Path(value)


def make_folder(path: Path, *, name: str) -> None:
    """Make a folder and those above it; an OSError that names the argument where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{name} is {path}, which cannot be made: {error.strerror}; it takes a folder that can be written"
        raise type(error)(reason) from error
