"""Where the parts of a run lie on a mesh of devices: environments over `data`, wide layers over `model`.

Nothing of an algorithm changes: rules from a leaf's path to a PartitionSpec say how a run is split, and the compiler
does the rest (Xu et al. 2021).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from purerl.base import require_env
from purerl.checks import require_count, require_kind, shown

RUN, DATA, MODEL = "run", "data", "model"

# Layers in pairs (Shoeybi et al. 2019): the first by its columns, so that its activations are split, the second by its
# rows, so that one sum over `model` makes their outputs whole; attention likewise, each of its heads on one device. Of
# what `networks` makes, torsos are split, and the last layers, of policies and values, are not.
_TORSO = r"(Torso_0|layers_0|torso/params)/MLP_0/"
RULES: tuple[tuple[str, P], ...] = (
    (_TORSO + r"Dense_\d*[02468]/kernel$", P(None, MODEL)),
    (_TORSO + r"Dense_\d*[02468]/bias$", P(MODEL)),
    (_TORSO + r"Dense_\d*[13579]/kernel$", P(MODEL, None)),
    (r"/mlp_up/kernel$", P(None, MODEL)),
    (r"/mlp_up/bias$", P(MODEL)),
    (r"/mlp_down/kernel$", P(MODEL, None)),
    (r"/attention/(query|key|value)/kernel$", P(None, MODEL, None)),
    (r"/attention/(query|key|value)/bias$", P(MODEL, None)),
    (r"/attention/out/kernel$", P(MODEL, None, None)),
    (r"(^|/)episodes/", P(DATA)),
    (r"/buffer/", P(DATA)),
)


class Layout(NamedTuple):
    """A mesh, and the rules of one's own by which runs are split over it; `layout` makes one, and checks it."""

    mesh: Mesh
    rules: tuple[tuple[str, P], ...] = ()


def mesh(*, data: int = 1, model: int = 1, run: int = 1) -> Mesh:
    """Return a mesh of the first `run` x `data` x `model` devices of all hosts, with axes of these names.

    A run has `data` x `model` of them, and `run` is how many runs are computed side by side. Raises ValueError for
    counts below one, for more devices than there are, and of several hosts for fewer.
    """
    counts = {RUN: run, DATA: data, MODEL: model}
    for name, count in counts.items():
        require_count(name, count)
    devices, asked = jax.devices(), math.prod(counts.values())
    told = " x ".join(f"{name} {count}" for name, count in counts.items())
    if asked > len(devices):
        raise ValueError(f"mesh is {told}; there are {len(devices)} devices")
    if asked < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh is {told}; {jax.process_count()} processes take all of their {len(devices)} devices")
    # Of axes that are explicit, which is jax's default, gymnax and flax know nothing.
    return jax.make_mesh(
        tuple(counts.values()), tuple(counts), axis_types=(AxisType.Auto,) * 3, devices=devices[:asked]
    )


def sizes_of(text: str) -> dict[str, int]:
    """Return the sizes that a text such as data=4,model=2 gives to `mesh`, by name; ValueError for another text."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in (RUN, DATA, MODEL) or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh is {text!r}; it takes sizes of its axes data, model and run, as data=4,model=2")
        sizes[name] = int(size)
    return sizes


def layout(mesh: Mesh, rules: Sequence[tuple[str, P]] = ()) -> Layout:
    """Return how runs are split over a mesh: by the first rule whose pattern is found in a leaf's path.

    Rules are pairs (regular expression, PartitionSpec), and come before `RULES`. Raises TypeError and ValueError for
    what is no mesh of `mesh`'s and for what is no rule.
    """
    require_kind("mesh", mesh, Mesh, wanted="a mesh, such as sharding.mesh(data=4, model=2)")
    if mesh.axis_names != (RUN, DATA, MODEL) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"mesh has the axes {shown(dict(mesh.shape))}; it takes one of sharding.mesh(data=4, model=2)")
    require_kind("rules", rules, tuple | list, wanted="pairs (pattern, PartitionSpec)")
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], P)):
            raise TypeError(f"rules has {shown(rule)}; it takes pairs (pattern, PartitionSpec)")
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"rules has the pattern {rule[0]!r}, which is no regular expression: {error}") from None
        if unknown := {name for axis in rule[1] for name in _names(axis)} - {DATA, MODEL}:
            raise ValueError(f"rules has {rule}, which splits over {sorted(unknown)}; it takes the axes data and model")
    return Layout(mesh, tuple(rules))


def path_of(path: Any) -> str:
    """Return the path of a leaf as rules see it, such as agent/params/actor/params/layers_0/MLP_0/Dense_0/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_of(layout: Layout, path: str, shape: Sequence[int]) -> P:
    """Return how a leaf of this path and shape is split, a single number never.

    Raises ValueError where a rule does not fit the shape.
    """
    for pattern, spec in (*layout.rules, *RULES):
        if not shape or not re.search(pattern, path):
            continue
        if len(spec) > len(shape):
            raise ValueError(f"{path} has shape {tuple(shape)}, and the rule {pattern!r} splits it by {spec}")
        for size, axis in zip(shape, spec, strict=False):
            parts = math.prod(layout.mesh.shape[name] for name in _names(axis))
            if size % parts:
                raise ValueError(
                    f"{path} has shape {tuple(shape)}, of which {size} is not divided by the {parts} devices along "
                    f"{' and '.join(_names(axis))}; change that width, or the mesh"
                )
        return spec
    return P()


def _names(axis: Any) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def _mapped(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_of(path), leaf), tree)


def shardings(layout: Layout, run: PyTree, *, leading: int = 0) -> PyTree:
    """Return where each leaf of a run, or of its shapes, lies; `leading` is 1 for several, whose axis lies over RUN."""
    require_kind("layout", layout, Layout, wanted="what sharding.layout(mesh) returns")

    def of(path: str, leaf: Any) -> NamedSharding:
        return NamedSharding(layout.mesh, P(*(RUN,) * leading, *spec_of(layout, path, leaf.shape[leading:])))

    return _mapped(of, run)


def bytes_per_device(places: PyTree, shapes: PyTree) -> int:
    """Return how many bytes a device holds of arrays of these shapes that lie as `places`, shardings, say."""

    def held(place: Any, leaf: Any) -> int:
        each = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return math.prod(place.shard_shape(leaf.shape)) * each

    return sum(jax.tree.leaves(jax.tree.map(held, places, shapes)))


def placed(layout: Layout | None, run: PyTree) -> PyTree:
    """Return a run split by the rules; it is traced."""
    return run if layout is None else _constrained(layout, run, lambda spec: spec)


def acting(layout: Layout | None, state: PyTree) -> PyTree:
    """Return an agent's state of which every device along `model` has all: gathered once, for a whole rollout."""

    def without_model(spec: P) -> P:
        return P(*(tuple(name for name in _names(axis) if name != MODEL) or None for axis in spec))

    return state if layout is None else _constrained(layout, {"agent": state}, without_model)["agent"]


def everywhere(layout: Layout | None, tree: PyTree) -> PyTree:
    """Return arrays of which every device has all."""
    return tree if layout is None else _constrained(layout, tree, lambda spec: P())


def _constrained(layout: Layout, tree: PyTree, changed: Callable[[P], P]) -> PyTree:
    # Of runs side by side each is traced for its own devices, with a mesh on which RUN is no axis to split over.
    inner = jax.sharding.get_abstract_mesh()
    on = inner if MODEL in inner.axis_names else layout.mesh
    where = _mapped(lambda path, leaf: NamedSharding(on, changed(spec_of(layout, path, leaf.shape))), tree)
    return jax.lax.with_sharding_constraint(tree, where)


def require_fitting(layout: Layout | None, env: Any, run: PyTree) -> None:
    """Raise a ValueError for environments that cannot be split over a layout, and rules that are for nothing."""
    if layout is None:
        return
    require_kind("layout", layout, Layout, wanted="what sharding.layout(mesh) returns")
    require_env("env", env)
    if env.spec.groups % (data := layout.mesh.shape[DATA]):
        raise ValueError(
            f"env has {env.spec.groups} groups of environments, and the mesh has data {data}: whole groups lie on a "
            f"device, so that it takes a multiple of {data}, as envs.make({env.name!r}, {env.spec.num_envs}, "
            f"groups={data}) makes"
        )
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(run)]
    for pattern, _ in layout.rules:
        if not any(re.search(pattern, path) for path in paths):
            agents = [path for path in paths if path.startswith("agent/")]
            raise ValueError(f"rules has {pattern!r}, which is in no path; there are {', '.join(agents[:8])}, ...")
