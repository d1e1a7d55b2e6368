"""Experience replay: a buffer of the last transitions, and the wrapper that lets any agent learn from samples of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from purerl.base import (
    Agent,
    Box,
    Discrete,
    Rollout,
    Spec,
    Transition,
    pytree_dataclass,
    require_agent,
    require_num_envs,
    require_spec,
    zeros,
)
from purerl.checks import require_count, require_kind

_FEW = 128  # environments, up to which comparing a number with all of them is quicker than halving


class Replay(NamedTuple):
    """A buffer as three pure functions, and how long the sequences are that it samples."""

    init: InitFn
    add: AddFn
    sample: SampleFn
    length: int


@runtime_checkable
class InitFn(Protocol):
    def __call__(self) -> PyTree:
        """Return the empty buffer."""
        ...


@runtime_checkable
class AddFn(Protocol):
    def __call__(self, buffer: PyTree, rollout: Rollout) -> PyTree:
        """Return the buffer with a rollout [T, N] added, over the oldest transitions when it is full."""
        ...


@runtime_checkable
class SampleFn(Protocol):
    def __call__(self, key: Key[Array, ""], buffer: PyTree, batch_size: int) -> tuple[Rollout, Array]:
        """Return `batch_size` sequences drawn uniformly, with replacement, as a rollout [length, batch_size], and
        whether the buffer holds a sequence at all (bool; if it does not, the rollout means nothing).
        """
        ...


@pytree_dataclass
class Buffer:
    """One ring of C observations and one of C steps per environment; arrays of 8 or more bool are kept as bits.

    Successive observations are stored once: a step's next observation is the entry after its observation. Only where an
    episode ended does the ring hold one entry more, the episode's last observation, which belongs to no step.
    """

    observation: PyTree  # [C * N, ...]: entry e of environment n at e * N + n, packed
    action: PyTree  # [C * N, ...]: step i of environment n at i * N + n, as the four below
    reward: Any  # float32
    terminated: Any  # bool
    truncated: Any  # bool
    entry: Any  # int32: the entry of the step's observation
    # Places in the rings and not totals: those would overflow in a long run.
    next_step: Any  # int32 [N]: where the next step goes, 0 .. C-1
    next_entry: Any  # int32 [N]: where its observation goes, 0 .. C-1
    held: Any  # int32 [N]: how many steps, up to the last one, still have both their observations


def uniform(spec: Spec, capacity: int, *, length: int = 1) -> Replay:
    """Return a buffer that samples sequences of `length` consecutive steps of one environment, all equally likely.

    `capacity` counts observations, over all environments, in the dtype in which they arrive (arrays of 8 or more bool
    as bits: an eighth of it, and read and written faster for it); an episode's end takes one more than its steps.
    Adding and sampling cost O(rollout) and O(batch log N + N). Raises ValueError for a capacity that `num_envs`
    does not divide, or too small to hold a sequence.
    """
    require_spec(spec, agent="a replay buffer")
    require_count("length", length)
    require_count("capacity", capacity)
    if capacity % spec.num_envs:
        raise ValueError(f"capacity is {capacity}, which the {spec.num_envs} environments (num_envs) do not divide")
    if capacity // spec.num_envs < 2 * length + 1:
        raise ValueError(
            f"capacity is {capacity}, that is {capacity // spec.num_envs} observations per environment; sequences of "
            f"length {length} take at least {2 * length + 1}"
        )
    if spec.groups > 1:
        one = spec._replace(num_envs=spec.num_envs // spec.groups, groups=1)
        return _grouped(uniform(one, capacity // spec.groups, length=length), spec.groups)
    num_envs, ring = spec.num_envs, capacity // spec.num_envs
    environments = jnp.arange(num_envs)

    def place(index: Int[Array, "*length batch"], environment: Int[Array, " batch"]) -> Int[Array, "*length batch"]:
        return index % ring * num_envs + environment

    def init() -> Buffer:
        def each(dtype):
            return jnp.zeros(capacity, dtype)

        def count():
            return jnp.zeros(num_envs, jnp.int32)

        return Buffer(
            observation=_empty(spec.observation, capacity),
            action=zeros(spec.action, (capacity,)),
            reward=each(jnp.float32),
            terminated=each(bool),
            truncated=each(bool),
            entry=each(jnp.int32),
            next_step=count(),
            next_entry=count(),
            held=count(),
        )

    def add_step(buffer: Buffer, step: Transition) -> tuple[Buffer, None]:
        here, there = place(buffer.next_step, environments), place(buffer.next_entry, environments)
        following = place(buffer.next_entry + 1, environments)

        def write(into: PyTree, what: PyTree, where: Array) -> PyTree:
            return jax.tree.map(
                lambda into, what: into.at[where].set(what, unique_indices=True, mode="promise_in_bounds"), into, what
            )

        entry = write(buffer.entry, buffer.next_entry, here)
        advance = 1 + (step.terminated | step.truncated)
        # The entries from the oldest step's to the last one written fit into the ring if they are fewer than C; the one
        # or two that are new can cost as many old steps.
        held = buffer.held + 1
        oldest = buffer.next_step - buffer.held
        used = (buffer.next_entry - entry[place(oldest, environments)]) % ring + advance
        for _ in range(2):
            gap = (entry[place(oldest + 1, environments)] - entry[place(oldest, environments)]) % ring
            lost = used >= ring
            used, oldest, held = used - lost * gap, oldest + lost, held - lost
        observation = write(buffer.observation, _pack(spec.observation, step.observation), there)
        return Buffer(
            observation=write(observation, _pack(spec.observation, step.next_observation), following),
            action=write(buffer.action, step.action, here),
            reward=write(buffer.reward, step.reward, here),
            terminated=write(buffer.terminated, step.terminated, here),
            truncated=write(buffer.truncated, step.truncated, here),
            entry=entry,
            next_step=(buffer.next_step + 1) % ring,
            next_entry=(buffer.next_entry + advance) % ring,
            held=held,
        ), None

    def add(buffer: Buffer, rollout: Rollout) -> Buffer:
        require_num_envs(rollout, num_envs, what="replay")
        return jax.lax.scan(add_step, buffer, rollout.steps)[0]

    def sample(key: Key[Array, ""], buffer: Buffer, batch_size: int) -> tuple[Rollout, Array]:
        # How many sequences can begin in each environment.
        starts = jnp.maximum(buffer.held - (length - 1), 0)
        ends = jnp.cumsum(starts)
        drawn = jax.random.randint(key, (batch_size,), 0, jnp.maximum(ends[-1], 1))
        method = "compare_all" if num_envs <= _FEW else "scan_unrolled"
        environment = jnp.searchsorted(ends, drawn, side="right", method=method)
        first = (buffer.next_step - buffer.held - (ends - starts))[environment] + drawn
        here = place(first + jnp.arange(length)[:, None], environment)  # [length, batch]
        entry = buffer.entry[here]

        def read(what: PyTree, where: Array) -> PyTree:
            return jax.tree.map(lambda leaf: leaf[where], what)

        def observed(where: Array) -> PyTree:
            return _unpack(spec.observation, read(buffer.observation, where))

        steps = Transition(
            observation=observed(place(entry, environment)),
            action=read(buffer.action, here),
            reward=buffer.reward[here],
            terminated=buffer.terminated[here],
            truncated=buffer.truncated[here],
            next_observation=observed(place(entry + 1, environment)),
        )
        return Rollout(steps=steps, memory=()), ends[-1] > 0

    return Replay(init=init, add=add, sample=sample, length=length)


def _grouped(replay: Replay, groups: int) -> Replay:
    """Return so many buffers side by side, each of its own environments: of each come as many samples."""

    def init() -> PyTree:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (groups, *leaf.shape)), replay.init())

    def add(buffer: PyTree, rollout: Rollout) -> PyTree:
        apart = jax.tree.map(lambda leaf: leaf.reshape(len(leaf), groups, -1, *leaf.shape[2:]), rollout)
        return jax.vmap(replay.add, (0, 1))(buffer, apart)

    def sample(key: Key[Array, ""], buffer: PyTree, batch_size: int) -> tuple[Rollout, Array]:
        if batch_size % groups:
            raise ValueError(f"batch_size is {batch_size}, which the {groups} groups of environments do not divide")
        keys = jax.random.split(key, groups)
        found, full = jax.vmap(lambda key, buffer: replay.sample(key, buffer, batch_size // groups), out_axes=(1, 0))(
            keys, buffer
        )
        return jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1, *leaf.shape[3:]), found), jnp.all(full)

    return Replay(init=init, add=add, sample=sample, length=replay.length)


def _is_packed(space: Discrete | Box) -> bool:
    return np.dtype(space.dtype) == bool and math.prod(space.shape) >= 8


def _empty(space: PyTree, capacity: int) -> PyTree:
    """Return the places of `capacity` stored observations of `space`."""

    def empty(space: Any) -> Array:
        if not _is_packed(space):
            return zeros(space, (capacity,))
        return jnp.zeros((capacity, -(-math.prod(space.shape) // 8)), jnp.uint8)

    return jax.tree.map(empty, space)


def _pack(space: PyTree, observation: PyTree) -> PyTree:
    """Return observations [..., *shape] of `space` as they are stored: arrays of bool as bits, uint8 [..., bytes]."""

    def pack(space: Any, value: Array) -> Array:
        if not _is_packed(space):
            return value
        leading = value.shape[: value.ndim - len(space.shape)]
        return jnp.packbits(value.reshape(*leading, -1), axis=-1)

    return jax.tree.map(pack, space, observation)


def _unpack(space: PyTree, stored: PyTree) -> PyTree:
    """Return the observations [..., *shape] of what `_pack` made."""

    def unpack(space: Any, stored: Array) -> Array:
        if not _is_packed(space):
            return stored
        bits = jnp.unpackbits(stored, axis=-1, count=math.prod(space.shape))
        return bits.reshape(*stored.shape[:-1], *space.shape).astype(bool)

    return jax.tree.map(unpack, space, stored)


@pytree_dataclass
class ReplayState:
    """A learner and the buffer that it learns from."""

    learner: PyTree
    buffer: PyTree


def with_replay(agent: Agent, replay: Replay, *, batch_size: int, updates: int = 1) -> Agent:
    """Return `agent` learning, whenever a rollout arrives, `updates` times from `batch_size` samples of `replay`.

    With `updates=0` it only collects: advance a run with that agent first to fill the buffer. The state is the same.
    Until the buffer holds a whole sequence nothing is learned. ValueError for a batch below 1 or updates below 0.
    """
    require_agent(agent)
    require_kind("replay", replay, Replay, wanted="a Replay, such as replay.uniform(spec, capacity)")
    require_count("batch_size", batch_size)
    require_count("updates", updates, least=0)

    def init(key, hypers):
        return ReplayState(learner=agent.init(key, hypers), buffer=replay.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.learner, memory, observation, hypers, greedy=greedy)

    def observe(state, rollout, hypers):
        return ReplayState(learner=agent.observe(state.learner, rollout, hypers), buffer=state.buffer)

    def update(key, state, rollout, hypers):
        buffer = replay.add(state.buffer, rollout)
        # After a rollout as long as the sequences there is one for sure, and no need to select among all parameters.
        surely = rollout.steps.reward.shape[0] >= replay.length

        def learn(learner, key):
            sample_key, update_key = jax.random.split(key)
            sampled, ready = replay.sample(sample_key, buffer, batch_size)
            learned, metrics = agent.update(update_key, learner, sampled, hypers)
            if surely:
                return learned, metrics
            nothing = learner, jax.tree.map(jnp.zeros_like, metrics)
            return jax.tree.map(lambda new, old: jnp.where(ready, new, old), (learned, metrics), nothing)

        learner, metrics = jax.lax.scan(learn, state.learner, jax.random.split(key, updates))
        means = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0) / max(updates, 1), metrics)
        return ReplayState(learner=learner, buffer=buffer), means

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)
