"""What devices say to each other in a compiled program, read from its text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from purerl.checks import require_kind

_COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(([^)]*)\)")
# Groups of devices, as XLA writes them: each number; numbers in order, reshaped and turned; or axes of such an array.
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}")
_ORDERED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")


class Collective(NamedTuple):
    """What the devices of a compiled program tell one another at one place of it."""

    kind: str  # all-reduce, all-gather, all-to-all, collective-permute or reduce-scatter
    place: str  # in the functions and loops that were traced; "rollout" is in that of what is told while acting
    arrays: int  # that go together
    groups: tuple[tuple[int, ...], ...]  # devices, by their number in the mesh, that tell one another; () if not known


def collectives(text: str) -> list[Collective]:
    """Return the collectives of a compiled program, in the order of its text, `jit(f).lower(x).compile().as_text()`.

    One within a loop stands there once, however often it comes. Raises TypeError for what is no text.
    """
    require_kind("text", text, str, wanted="that of a compiled program, as compiled.as_text() returns")
    found = []
    for line in text.splitlines():
        if one := _COLLECTIVE.search(line):
            place = re.search(r'op_name="([^"]*)"', line)
            kind, operands = one.groups()
            found.append(Collective(kind, place.group(1) if place else "", operands.count("%"), _groups(line)))
    return found


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)]

    def ordered(shape: str, turned: str | None) -> np.ndarray:
        every = np.arange(math.prod(numbers(shape))).reshape(numbers(shape))
        return every.transpose(numbers(turned)) if turned else every

    if one := _LISTED.search(line):
        rows = [numbers(group) for group in one.group(1).split("},")]
    elif one := _ORDERED.search(line):
        rows = ordered(one.group(2), one.group(3)).reshape(numbers(one.group(1))).tolist()
    elif one := _AXES.search(line):
        axes, shape, turned, over = one.groups()
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
        every = ordered(shape or str(math.prod(sizes.values())), turned).reshape(tuple(sizes.values()))
        within = [place for place, name in enumerate(sizes) if name in re.findall(r"\w+", over)]
        last = np.moveaxis(every, within, range(-len(within), 0))
        rows = last.reshape(-1, math.prod(last.shape[last.ndim - len(within) :])).tolist()
    else:
        rows = []
    return tuple(tuple(row) for row in rows)


def along(mesh: Mesh | AbstractMesh, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return the axes of a mesh along which a `Collective` has its groups; () if they are not those of any."""
    every = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    split = [place for place, size in enumerate(every.shape) if size > 1]
    for count in range(1, len(split) + 1):
        for within in itertools.combinations(split, count):
            rows = np.moveaxis(every, within, range(-count, 0)).reshape(-1, math.prod(every.shape[i] for i in within))
            if {frozenset(row) for row in rows.tolist()} == {frozenset(group) for group in groups}:
                return tuple(mesh.axis_names[place] for place in within)
    return ()
