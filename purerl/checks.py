"""What is given is what is taken: checks, made once, where a script builds or starts something.

What they raise is one sentence that names the argument, what it got and what it takes. This module imports nothing of
jax, so that those who only read results need not wait for it; what knows of agents and environments is in `base`.
"""

from __future__ import annotations

import inspect
import math
import os
from pathlib import Path
from typing import Any

import numpy as np


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
