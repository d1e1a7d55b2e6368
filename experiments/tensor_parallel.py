"""A wide network split over devices: PPO on a mesh, and the same seeds on one device.

Environments lie over `data`, and every layer of the torsos over `model`, in pairs: the first by its columns, the second
by its rows (Shoeybi et al. 2019). Prints what each device holds, which collectives the compiled program has and where,
against those that theory asks for, and how far what the mesh has learned is from what one device has; and saves one
picture. A CPU is made into 8 devices, unless JAX_NUM_CPU_DEVICES says another number: that shows what is split and what
is said between devices, but not what time it saves, as all of them share the cores that there are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # before jax is started; accelerators are as many as there are

import jax
import numpy as np

from purerl import cli, compiled, driver, envs, loop, networks, parts, plots, scores, sharding
from purerl.agents import ppo
from purerl.base import Agent, cast_hypers, require_count
from purerl.layers import Blocks
from purerl.metrics import Progress
from purerl.sharding import DATA, MODEL, RUN

NUM_ENVS, LENGTH = 16, 64
EPOCHS, MINIBATCHES = 4, 4
ONE, MESH = "one device", "mesh"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags."""

    env: str = "CartPole-v1"  # name of an environment that gymnax knows
    total_steps: int = 16_384  # environment steps per seed, in whole updates of 1024
    seeds: int = 4  # independent runs
    seed: int = 0  # what all keys are made of
    width: int = 128  # of the hidden layers or blocks, in the policy and in the values' network
    layers: int = 2  # how many there are in each of the two
    blocks: Blocks = "residual"  # what they are
    heads: int = 4  # of each transformer block's attention; other blocks have none
    mesh: str = "data=2,model=4"  # devices over which environments and layers are split
    # Of environments, within which batches are drawn: results depend on it, and not on the mesh; its data if not given.
    groups: int | None = None
    hypers: ppo.Hypers = ppo.Hypers(learning_rate=5e-4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("total_steps", "width", "layers", "heads"):
            require_count(name, getattr(self, name))
        require_count("seeds", self.seeds, least=2)  # of which there is an interval
        require_count("seed", self.seed, least=0)
        data, model = self.size(DATA), self.size(MODEL)
        if self.size(RUN) > 1:
            raise ValueError(f"mesh is {self.mesh}; one run has all of it here: it takes sizes of data and model")
        if NUM_ENVS % data:
            raise ValueError(f"mesh is {self.mesh}; its data takes a divisor of the {NUM_ENVS} environments")
        if self.groups is not None and (self.groups < 1 or NUM_ENVS % self.groups or self.groups % data):
            wanted = f"a divisor of the {NUM_ENVS} environments and a multiple of the mesh's data, {data}"
            raise ValueError(f"groups is {self.groups}; it takes {wanted}")
        for name in ("width", "heads") if self.blocks == "transformer" else ("width",):
            if getattr(self, name) % model:
                raise ValueError(
                    f"{name} is {getattr(self, name)} and mesh is {self.mesh}; it takes a multiple of its "
                    f"model, {model}"
                )

    def size(self, axis: str) -> int:
        """Return how many devices there are along an axis of the mesh."""
        return sharding.sizes_of(self.mesh).get(axis, 1)

    @property
    def updates(self) -> int:
        """How many updates each run takes."""
        return math.ceil(self.total_steps / (NUM_ENVS * LENGTH))


def layout_of(settings: Settings) -> sharding.Layout:
    """Return the mesh's layout. Raises ValueError for more devices than there are."""
    return sharding.layout(sharding.mesh(**sharding.sizes_of(settings.mesh)))


def made(settings: Settings) -> tuple[envs.Env, Agent]:
    """Return environments and agent. Raises ValueError where they do not fit together."""
    env = envs.make(settings.env, NUM_ENVS, groups=settings.groups or settings.size(DATA))
    layers: dict[str, Any] = {"blocks": settings.blocks, "heads": settings.heads}
    both = [
        make(env.spec, (settings.width,) * settings.layers, **layers)
        for make in (networks.policy, networks.state_values)
    ]
    return env, ppo.ppo(env.spec, *both, epochs=EPOCHS, minibatches=MINIBATCHES)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(settings: Settings, name: str) -> dict[str, Any]:
    """Train all seeds one after another, on one device or on the mesh, and return what came of it; U updates.

    Raises cli.Failed if parameters are no longer finite.
    """
    layout = layout_of(settings) if name == MESH else None
    env, agent = made(settings)
    hypers = cast_hypers(settings.hypers)

    def begin(key):
        return loop.begin(key, agent, env, hypers, layout=layout)

    def advance(run):
        return loop.advance(run, agent, env, hypers, iterations=1, length=LENGTH, layout=layout)

    keys = driver.seed_keys(settings.seed, settings.seeds)
    places = None if layout is None else sharding.shardings(layout, jax.eval_shape(begin, keys[0]))
    born = jax.jit(begin, out_shardings=places)
    begun = time.perf_counter()
    run = born(keys[0])
    program = jax.jit(advance, donate_argnums=0, out_shardings=(places, None)).lower(run).compile()
    compile_seconds = time.perf_counter() - begun

    rows, after_one, after_all, seconds = [], [], [], 0.0
    steps = NUM_ENVS * LENGTH
    with Progress(settings.seeds * settings.updates * steps, description=name) as progress:
        for number, key in enumerate(keys):
            run, row = born(key), []
            jax.block_until_ready(run.iteration)
            begun = time.perf_counter()
            for update in range(settings.updates):
                run, metrics = program(run)
                if update == 0:
                    after_one.append(flat(run.agent.params))
                row.append({key: float(value[0]) for key, value in metrics.items()})
                done = (number * settings.updates + update + 1) * steps
                progress.update(done, episode_return=mean_return(row[-1:]))
            seconds += time.perf_counter() - begun
            after_all.append(flat(run.agent.params))
            rows.append(row)
    if not np.isfinite(after_all).all():
        raise cli.Failed(f"{name}: a seed diverged; try a smaller --hypers.learning-rate")
    learned = run.agent.params, run.agent.optimizer
    found: dict[str, Any] = {key: [[one[key] for one in row] for row in rows] for key in rows[0][0]}  # [seeds, U]
    found |= {"params after one update": after_one, "params at the end": after_all}  # [seeds, parameters]
    found |= {"compile_seconds": compile_seconds, "speed": settings.seeds * settings.updates * steps / seconds}
    found |= held(learned) | {"gathered": len([leaf for leaf in jax.tree.leaves(learned[0].actor) if is_split(leaf)])}
    if layout is not None:
        found["text"] = program.as_text()
    return {key: np.asarray(value) for key, value in found.items()}


def flat(params: Any) -> np.ndarray:
    """Return all parameters in one row: [parameters]."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


def mean_return(rows: list[dict[str, float]]) -> float:
    """Return the mean return of the episodes that ended in these updates, NaN if none did."""
    episodes = sum(row["episodes"] for row in rows)
    return sum(row["episode_return"] for row in rows) / episodes if episodes else math.nan


def is_split(leaf: jax.Array) -> bool:
    """Return whether an array's devices hold parts of it."""
    return any(shard.data.nbytes < leaf.nbytes for shard in leaf.addressable_shards)


def held(learned: Any) -> dict[str, Any]:
    """Return how many leaves are split and whole, their bytes in all, and those on every device: [D]."""
    found = {}
    for name, wanted in (("split", True), ("whole", False)):
        leaves = [leaf for leaf in jax.tree.leaves(learned) if is_split(leaf) == wanted]
        own: dict[Any, int] = dict.fromkeys(jax.tree.leaves(learned)[0].sharding.device_set, 0)
        for leaf in leaves:
            for shard in leaf.addressable_shards:
                own[shard.device] += shard.data.nbytes
        found |= {f"{name} leaves": len(leaves), f"{name} bytes": sum(leaf.nbytes for leaf in leaves)}
        found[f"{name} bytes on devices"] = list(own.values())
    return found


# --- what devices tell one another ------------------------------------------------------------------------------------


class Line(NamedTuple):
    """Collectives of one sort."""

    where: str  # rollout, update, epoch or minibatch
    over: str  # axes of the mesh
    what: str
    operations: int  # of the compiled program
    arrays: int  # that they tell
    theory: int  # how many it takes, counted in arrays, or in operations if they go together
    together: bool
    note: str  # why it may be more

    @property
    def found(self) -> int:
        """What is to be compared with theory."""
        return self.operations if self.together else self.arrays


def lines_of(settings: Settings, collectives: list[compiled.Collective], gathered: int) -> list[Line]:
    """Return all collectives of an update by their place, with what theory asks for; `gathered` leaves act."""
    mesh = layout_of(settings).mesh
    pairs = {"dense": math.ceil(settings.layers / 2), "residual": settings.layers, "transformer": 2 * settings.layers}
    forward = 2 * pairs[settings.blocks]  # of two networks
    backward = forward - 2 * (settings.blocks == "dense")  # of observations there is no gradient
    asked = {
        ("rollout", "", "whatever there is"): (0, False),
        ("update", MODEL, "gathering what acts"): (gathered, False),
        ("update", MODEL, "forward, on the whole rollout"): (forward, False),
        ("update", DATA, "episodes, their returns and lengths"): (3, False),
        ("epoch", "", "shuffling"): (0, False),
        # Together, as XLA may join what one network sums forward with what the other sums backward.
        ("minibatch", MODEL, "forward and backward"): (forward + backward, False),
        ("minibatch", MODEL, "the gradient's norm"): (1, True),
        ("minibatch", DATA, "gradients"): (1, True),
        ("minibatch", DATA, "advantages' mean, deviation, largest"): (3, False),
    }
    for (where, over, what), (_, together) in list(asked.items()):
        if over and settings.size(over) == 1:
            asked[where, over, what] = 0, together
    notes = {"advantages' mean, deviation, largest": "the deviation takes the mean for itself"}
    if settings.blocks == "transformer":
        notes["forward and backward"] = "XLA sums the gradients of query, key and value one by one"
    if settings.blocks == "dense" and settings.layers % 2:
        notes["gathering what acts"] = "the last layer is half a pair: XLA gathers it"
    counted = {name: [0, 0] for name in asked}
    for one in collectives:
        name = sort_of(one, " and ".join(compiled.along(mesh, one.groups)))
        operations, arrays = counted.setdefault(name, [0, 0])
        counted[name] = [operations + 1, arrays + one.arrays]
    found = []
    for name, (operations, arrays) in counted.items():
        theory, together = asked.get(name, (0, False))
        found.append(Line(*name, operations, arrays, theory, together, notes.get(name[2], "")))
    return found


def sort_of(one: compiled.Collective, over: str) -> tuple[str, str, str]:
    """Return where a collective is, over which axes, and what it is for."""
    if "rollout" in one.place:
        return "rollout", "", "whatever there is"
    # By the loops that it is in: of the rows of metrics, of iterations, of epochs, of minibatches.
    where = {2: "update", 3: "epoch", 4: "minibatch"}.get(one.place.count("while/body"), "elsewhere")
    gathers, backward, forward = one.kind == "all-gather", "transpose(" in one.place, "dot_general" in one.place
    match where, over, one.kind:
        case "update", "model", "all-gather":
            return where, over, "gathering what acts"
        case "update", "model", "all-reduce" if forward:
            return where, over, "forward, on the whole rollout"
        case "update", "data", "all-reduce":
            return where, over, "episodes, their returns and lengths"
        case "epoch", _, _:
            return where, "", "shuffling"
        case "minibatch", "model", "all-reduce":
            return where, over, "forward and backward" if backward or forward else "the gradient's norm"
        case "minibatch", "data", "all-reduce":
            return where, over, "gradients" if backward else "advantages' mean, deviation, largest"
    return where, over, f"{one.kind}{' (gathers)' * gathers} of {one.place.rpartition('/')[2]}"


# --- what came of it --------------------------------------------------------------------------------------------------


def main(settings: Settings) -> None:
    """Train on one device and on the mesh, and tell what came of it."""
    with cli.bad_input():
        cli.require_one_process("this looks at arrays that are all its own")
        settings = dataclasses.replace(settings, groups=settings.groups or settings.size(DATA))
        cli.require_sensible(settings.hypers)
        driver.seed_keys(settings.seed, settings.seeds)  # of 32 bits
        layout, (env, agent) = layout_of(settings), made(settings)
        cli.require_fitting([driver.Phase(agent, settings.total_steps)], env, settings.hypers, LENGTH, layout)
    folder = parts.opened(settings, "tensor_parallel", settings.env)
    if folder.finished:
        return
    with folder:
        one = folder.part(ONE, functools.partial(trained, settings, ONE))
        mesh = folder.part(f"{MESH} {settings.mesh}", functools.partial(trained, settings, MESH))
        tell(one, mesh, settings, folder)


def describe(one: dict[str, Any], mesh: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return what is told, JSON-ready."""
    lines = lines_of(settings, compiled.collectives(str(mesh["text"])), int(mesh["gathered"]))
    names = [f"{kind} {what}" for kind in ("split", "whole") for what in ("leaves", "bytes", "bytes on devices")]
    late = slice(-math.ceil(settings.updates / 4), None)
    returns = {name: late_returns(found, late) for name, found in ((ONE, one), (MESH, mesh))}
    return {
        "held": {name: mesh[name].tolist() for name in names},
        "collectives": [line._asdict() for line in lines],
        "apart": {
            when: apart(one[f"params {when}"], mesh[f"params {when}"]) for when in ("after one update", "at the end")
        },
        "updates with the same episodes": same_episodes(one, mesh).tolist(),
        "returns": {name: scores.summary(row) | interval(row) for name, row in returns.items()},
        "differences": interval(returns[MESH] - returns[ONE]),
        "speed": {name: float(found["speed"]) for name, found in ((ONE, one), (MESH, mesh))},
        "compile_seconds": {name: float(found["compile_seconds"]) for name, found in ((ONE, one), (MESH, mesh))},
    }


def late_returns(found: dict[str, Any], late: slice) -> np.ndarray:
    """Return the mean return of each seed's episodes in the `late` updates, NaN where none ended: [seeds]."""
    episodes = found["episodes"][:, late].sum(axis=1)
    with np.errstate(invalid="ignore"):
        return found["episode_return"][:, late].sum(axis=1) / episodes


def interval(row: np.ndarray) -> dict[str, Any]:
    """Return the mean over seeds, and its 95 % interval; None where too few have a score."""
    kept = row[np.isfinite(row)]
    return {
        "mean": float(kept.mean()) if kept.size else None,
        "mean_ci95": list(scores.bootstrap_interval(kept, np.mean)) if kept.size > 1 else None,
    }


def apart(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return how far parameters [seeds, parameters] are apart: the most, and their distance in their length."""
    distance = np.linalg.norm(one - other, axis=1) / np.linalg.norm(one, axis=1)
    return {"most": float(np.abs(one - other).max()), "relative": float(distance.max())}


def same_episodes(one: dict[str, Any], mesh: dict[str, Any]) -> np.ndarray:
    """Return after how many updates the episodes that ended, or their returns, are first others: [seeds]."""
    names = "episodes", "episode_return", "episode_length"
    same = np.all([one[name] == mesh[name] for name in names], axis=0)
    return np.cumprod(same, axis=1).sum(axis=1)


def tell(one: dict[str, Any], mesh: dict[str, Any], settings: Settings, folder: parts.Parts) -> None:
    """Print what is held, what is told, and how far apart both are; save the picture, write the results."""
    told = describe(one, mesh, settings)
    device = jax.devices()[0]
    print(
        f"PPO on {settings.env}, two networks of {settings.layers} {settings.blocks} layers {settings.width} wide: "
        f"{settings.seeds} seeds of {settings.updates} updates, on {device.device_kind}, mesh {settings.mesh}"
    )
    tell_held(told["held"], settings.size(MODEL))
    tell_collectives([Line(**line) for line in told["collectives"]])
    tell_learned(told, settings)
    picture(one, mesh, folder.directory / "tensor_parallel.png", settings)
    left_out = "text", "params after one update", "params at the end"
    metrics = {
        f"{key} on {name}": value
        for name, found in ((ONE, one), (MESH, mesh))
        for key, value in found.items()
        if key not in left_out
    }
    folder.finish(
        metrics | {"environment_steps": environment_steps(settings)},
        {"agent": "ppo", "env": settings.env, "seeds": settings.seeds} | told,
        ["tensor_parallel.png"],
    )


def tell_held(found: dict[str, Any], model: int) -> None:
    """Print the bytes of parameters and Adam's moments."""
    for name in ("split", "whole"):
        every, own = found[f"{name} bytes"], sorted(set(found[f"{name} bytes on devices"]))
        most = own[-1] if own else 0
        if name == "split":
            parts_of = f", exactly {every:,} / {model}" if own == [every // model] and every % model == 0 else ""
        else:
            parts_of = ", all of it" if own == [every] else ""
        many = found[f"{name} leaves"]
        print(f"{name}: {many:3d} leaves, {every:12,} bytes in all, {most:12,} on each device{parts_of}")
    every, own = (
        sum(np.max(found[f"{name} {what}"]) for name in ("split", "whole")) for what in ("bytes", "bytes on devices")
    )
    print(f"parameters and Adam's moments: {every:,} bytes, {own:,} on each device, a part of {own / every:.3f}")


def tell_collectives(lines: list[Line]) -> None:
    """Print all collectives of the compiled program, and what theory asks for."""
    print(
        "collectives that the compiled program has once per ..., against theory: over model one sum for each block and"
    )
    print("network each way (two for a transformer's), over data one for all gradients; arrays may go together")
    print(f"  {'where':10s} {'over':6s} {'what':37s} {'collectives':>11s} {'arrays':>7s}   theory")
    for line in lines:
        unit = "collective" if line.together else "array"
        wanted = f"{line.theory} {unit}{'s' * (line.theory != 1)}"
        less = (
            "" if line.found == line.theory else f" ({line.found - line.theory:+d}{': ' * bool(line.note)}{line.note})"
        )
        over = line.over or "any"
        print(f"  {line.where:10s} {over:6s} {line.what:37s} {line.operations:11d} {line.arrays:7d}   {wanted}{less}")


def tell_learned(told: dict[str, Any], settings: Settings) -> None:
    """Print how far apart both are, and what they earn."""
    for when, far in told["apart"].items():
        print(f"parameters {when}: at most {far['most']:.1e} apart, {far['relative']:.1e} of their length")
    same = told["updates with the same episodes"]
    print(f"the same episodes in the first {', '.join(map(str, same))} of {settings.updates} updates (by seed)")
    if min(same) < settings.updates:
        print("(sums in another order round otherwise; once that makes one action another, they are runs of their own)")
    for name, line in told["returns"].items():
        speed = f"{told['speed'][name]:,.0f} steps/s, compiled in {told['compile_seconds'][name]:.0f} s"
        print(f"{name:10s} return in the last quarter {in_words(line)};  {speed}")
    print(f"{'difference':10s} mesh less one device, seed by seed {in_words(told['differences'])}")


def in_words(line: dict[str, Any]) -> str:
    """Return a mean and its interval."""
    if line["mean"] is None:
        return "none: no episode ended"
    span = "" if line["mean_ci95"] is None else " [{:.2f}, {:.2f}]".format(*line["mean_ci95"])
    return f"{line['mean']:.2f}{span}"


def environment_steps(settings: Settings) -> np.ndarray:
    """Return the steps done after each update: [U]."""
    return NUM_ENVS * LENGTH * np.arange(1, settings.updates + 1)


def picture(one: dict[str, Any], mesh: dict[str, Any], path: Path, settings: Settings) -> None:
    """Save the learning curves of both in one frame."""
    figure = plots.new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    curves = {}
    for name, found in ((ONE, one), (f"mesh {settings.mesh}", mesh)):
        with np.errstate(invalid="ignore"):
            curves[name] = found["episode_return"] / found["episodes"]
    steps = environment_steps(settings)
    plots.comparison(axes, steps, curves, xlabel="environment steps", ylabel="episode return in training")
    title = f"PPO on {settings.env}, {settings.seeds} seeds, means and 95 % intervals"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    plots.save(figure, path)


if __name__ == "__main__":
    cli.start(main, Settings)
