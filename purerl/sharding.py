"""Where the parts of a run lie on a mesh of devices: environments over `data`, wide layers over `model`.

Nothing of an algorithm changes: rules from a leaf's path to a PartitionSpec say how a run is split, and the compiler
does the rest (Xu et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from purerl.checks import require_count, require_kind

DATA, MODEL = "data", "model"

# Layers in pairs (Shoeybi et al. 2019): the first by its columns, so that its activations are split, the second by its
# rows, so that one sum over `model` makes their outputs whole; attention likewise, each of its heads on one device. Of
# what `networks` makes, torsos are split, and the last layers, of policies and values, are not.
_TORSO = r"(Torso_0|layers_0|torso/params)/MLP_0/"
RULES: tuple[tuple[str, P], ...] = (
    (_TORSO + r"Dense_\d*[02468]/kernel$", P(None, MODEL)),
    (_TORSO + r"Dense_\d*[02468]/bias$", P(MODEL)),
    (_TORSO + r"Dense_\d*[13579]/kernel$", P(MODEL, None)),
    (r"_up/kernel$", P(None, MODEL)),
    (r"_up/bias$", P(MODEL)),
    (r"_down/kernel$", P(MODEL, None)),
    (r"/attention/(query|key|value)/kernel$", P(None, MODEL, None)),
    (r"/attention/(query|key|value)/bias$", P(MODEL, None)),
    (r"/attention/out/kernel$", P(MODEL, None, None)),
    (r"^episodes/", P(DATA)),
    (r"/buffer/", P(DATA)),
)


class Layout(NamedTuple):
    """A mesh, and the rules by which a run is split over it: the first whose pattern is found in a leaf's path."""

    mesh: Mesh
    rules: tuple[tuple[str, P], ...] = RULES


def mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """Return a mesh of the first `data` x `model` devices of all hosts.

    Raises ValueError for counts below one, and for more devices than there are.
    """
    require_count("data", data)
    require_count("model", model)
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(f"data is {data} and model is {model}; there are {len(devices)} devices")
    # Of axes that are explicit, which is jax's default, gymnax and flax know nothing.
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[: data * model])


def path_of(path: Any) -> str:
    """Return the path of a leaf as rules see it, such as agent/params/actor/params/layers_0/MLP_0/Dense_0/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_of(layout: Layout, path: str, shape: Sequence[int]) -> P:
    """Return how a leaf of this path and shape is split. Raises ValueError where a rule does not fit the shape."""
    for pattern, spec in layout.rules:
        if not re.search(pattern, path):
            continue
        if len(spec) > len(shape):
            raise ValueError(f"{path} has shape {tuple(shape)}, and the rule {pattern!r} splits it by {spec}")
        for size, axis in zip(shape, spec, strict=False):
            parts = int(np.prod([layout.mesh.shape[name] for name in _names(axis)]))
            if size % parts:
                raise ValueError(
                    f"{path} has shape {tuple(shape)}, of which {size} is not divided by the {parts} devices along "
                    f"{' and '.join(_names(axis))}; change the width, or the mesh"
                )
        return spec
    return P()


def _names(axis: Any) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def shardings(layout: Layout, run: PyTree) -> PyTree:
    """Return of a run, or its shapes, where each leaf lies."""
    require_kind("layout", layout, Layout, wanted="a Layout(mesh), as sharding.mesh makes one")

    def of(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(layout.mesh, spec_of(layout, path_of(path), leaf.shape))

    return jax.tree_util.tree_map_with_path(of, run)


def whole(layout: Layout | None, tree: PyTree) -> PyTree:
    """Return a tree every device of which has all: what acts, gathered once for a rollout."""
    return tree if layout is None else jax.lax.with_sharding_constraint(tree, NamedSharding(layout.mesh, P()))


def placed(layout: Layout | None, run: PyTree) -> PyTree:
    """Return a run laid out by the rules."""
    return run if layout is None else jax.lax.with_sharding_constraint(run, shardings(layout, run))
