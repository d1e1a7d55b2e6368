"""Looking for numbers that are none: whether a state holds one, and which operation made the first."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool, PyTree

from purerl.checks import require_function

_INSTALLED = str(Path(jax.__file__).parent.parent)


def has_nan(state: PyTree) -> Bool[Array, " S"]:
    """Return whether the agents' states, batched with leading axis [S], hold a NaN: whether these runs diverged."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    found = [jnp.any(jnp.isnan(leaf.reshape(len(leaf), -1)), axis=1) for leaf in leaves]
    return jnp.any(jnp.stack(found), axis=0) if found else jnp.zeros(len(jax.tree.leaves(state)[0]), bool)


def nan_checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as (error, result), to jit: the error, for `require_none`, knows the first NaN made."""
    require_function("function", function, wanted="a function of arrays")
    return checkify.checkify(function, errors=checkify.nan_checks)


def require_none(error: Any) -> None:
    """Raise a FloatingPointError if an operation made a NaN: it names that, and the line that asked for it."""
    found = error.get_exception()
    if found is None:
        return
    frames = traceback.extract_tb(found.traceback_info.as_python_traceback())
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    where = f" in {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""
    raise FloatingPointError(f"{found.prim} made a NaN{where}")
