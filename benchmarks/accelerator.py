"""purerl on an accelerator: how speed grows with environments and with agents, and what smaller numbers gain.

envs: PPO and DQN on CartPole and Breakout-MinAtar with 2^8 to 2^16 environments: environment steps per second of whole
training, acting and learning, and the seconds that compiling took. Where more environments no longer make more steps,
the device is full.
agents: 2048 agents of PPO (4 environments each) on CartPole, vmapped: their steps per second summed, against one's.
precision: an update of PPO with two hidden layers of 64, 512 or 4096: in float32, in tf32 (float32 whose products a GPU
may round to ten bits; on a CPU it is float32), and in bfloat16 (`precision.preset`), run by run in turn. The ratios are
what to compare: times of the others over that of bfloat16.

`accelerator.py envs precision` measures these parts alone. Without an accelerator all is small, and its rows say so
(`small`): they tell that the program works. What does not fit into the device's memory is kept as `out_of_memory`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from _measure import machine, record

from purerl import envs, loop, networks, precision, replay, rollout
from purerl.agents import dqn, ppo
from purerl.base import cast_hypers

MOST_SECONDS = 420.0  # after so many no further figure is begun: so that the whole stays below ten minutes
EPOCHS = 4  # of PPO, of each rollout
MINIBATCHES = {"CartPole-v1": 4, "Breakout-MinAtar": 8}  # of each epoch, as in experiments/
SAMPLES_PER_STEP = 4  # of DQN: batches of 4 N each time that N environments have stepped, as in dqn_minatar.py
RING = 64  # observations in replay per environment: 2^16 of Breakout, as bits, take 0.3 GB
PPO_HYPERS = cast_hypers(ppo.Hypers(max_kl=float("inf")))  # no epoch is left out, however far the policy has moved
DQN_HYPERS = cast_hypers(dqn.Hypers())


class Size(NamedTuple):
    """How much is measured."""

    num_envs: tuple[int, ...]
    length: int  # steps of PPO's rollouts with many environments; 128 of 2^16 pictures would fill a GPU's memory
    ppo_iterations: int  # in a chunk: what is compiled, and run until `seconds` are over
    dqn_iterations: int
    seconds: float  # of measuring a configuration, at least
    agents: int  # vmapped, each with 4 environments and rollouts of 128 steps, as in experiments/ppo.py
    widths: tuple[int, ...]  # of the hidden layers whose precision is measured
    batch: int  # environments of the rollouts of `length` steps that they learn from
    repeats: int  # of an update in each precision


NUM_ENVS = (2**8, 2**16, 2**12, 2**10, 2**14)  # the ends first, should the time not suffice
FULL = Size(NUM_ENVS, 32, 4, 64, 2.0, agents=2048, widths=(64, 512, 4096), batch=1024, repeats=11)
SMALL = Size((2**8, 2**10), 8, 1, 4, 0.5, agents=32, widths=(64, 512), batch=64, repeats=5)


def kept(case: str, measure: Callable[[], dict[str, Any]], began: float) -> None:
    """Print and keep the figures of a case, or that they do not fit into memory; leave them out if it is too late."""
    if time.perf_counter() - began > MOST_SECONDS:
        print(f"{case}: left out, as {MOST_SECONDS:.0f} s are over; name fewer parts", flush=True)
        return
    try:
        figures = measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        figures = {"out_of_memory": True}
    figures |= {"device": jax.devices()[0].device_kind, "small": jax.devices()[0].platform == "cpu"}
    record("accelerator", {"case": case, **figures})


def speed(agent: Any, env: Any, hypers: Any, iterations: int, length: int, least: float, agents: int = 0):
    """Return the steps per second of chunks of so many iterations, and the seconds that compiling one took.

    The first chunk is not counted. `agents` are vmapped; 0 is one that is not.
    """

    def begin(key, hypers):
        return loop.begin(key, agent, env, hypers)

    def advance(run, hypers):
        return loop.advance(run, agent, env, hypers, iterations=iterations, length=length)[0]

    key = jax.random.key(0)
    if agents:
        begin, advance, key = jax.vmap(begin, (0, None)), jax.vmap(advance, (0, None)), jax.random.split(key, agents)
    run = jax.block_until_ready(jax.jit(begin)(key, hypers))
    began = time.perf_counter()
    program = jax.jit(advance, donate_argnums=0).lower(run, hypers).compile()  # donated as the driver does
    compiled = time.perf_counter() - began
    run = jax.block_until_ready(program(run, hypers))
    taken: list[float] = []
    while sum(taken) < least:
        began = time.perf_counter()
        run = jax.block_until_ready(program(run, hypers))
        taken.append(time.perf_counter() - began)
    steps = iterations * length * env.spec.num_envs * max(agents, 1)
    return {"steps_per_second": round(steps / statistics.median(taken)), "compile_seconds": round(compiled, 1)}


def ppo_agent(env: Any, hidden: tuple[int, ...] = (64, 64), preset: precision.Preset = "float32"):
    """Return PPO as in experiments/, without normalisation."""
    activation = nn.relu if "MinAtar" in env.name else nn.tanh
    parts = [network(env.spec, hidden, activation) for network in (networks.policy, networks.state_values)]
    actor, critic = (precision.preset(part, preset) for part in parts)
    return ppo.ppo(env.spec, actor, critic, epochs=EPOCHS, minibatches=MINIBATCHES[env.name])


def dqn_agent(env: Any):
    """Return DQN with the networks of experiments/, and a replay that the first chunk fills."""
    hidden, filters = ((128,), (16,)) if "MinAtar" in env.name else ((120, 84), ())
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, hidden, filters=filters))
    buffer = replay.uniform(env.spec, RING * env.spec.num_envs)
    return replay.with_replay(learner, buffer, batch_size=SAMPLES_PER_STEP * env.spec.num_envs)


def training(name: str, game: str, num_envs: int, size: Size) -> dict[str, Any]:
    """Return the speed of training in so many environments."""
    env = envs.make(game, num_envs, observation_dtype="bool" if "MinAtar" in game else None)
    if name == "PPO":
        return speed(ppo_agent(env), env, PPO_HYPERS, size.ppo_iterations, size.length, size.seconds)
    return speed(dqn_agent(env), env, DQN_HYPERS, size.dqn_iterations, 1, size.seconds)


def many_agents(size: Size) -> dict[str, Any]:
    """Return the speed of vmapped agents, and of one alone."""
    env = envs.make("CartPole-v1", 4)
    measured = ppo_agent(env), env, PPO_HYPERS, size.ppo_iterations, 128, size.seconds
    one, every = speed(*measured), speed(*measured, agents=size.agents)
    times = round(every["steps_per_second"] / one["steps_per_second"], 1)
    return every | {f"{name}_alone": figure for name, figure in one.items()} | {"times_one_agent": times}


@functools.cache
def experience(num_envs: int, length: int) -> tuple[Any, Any]:
    """Return an environment, and a rollout that a small policy made in it."""
    env, key = envs.make("CartPole-v1", num_envs), jax.random.key(0)
    agent = ppo_agent(env)

    def act(key, hypers):
        run, keys = loop.begin(key, agent, env, hypers), rollout.step_keys(key, length)
        return rollout.unroll(keys, agent, run.agent, env, env.params, run.episodes, hypers)[1]

    return env, jax.jit(act)(key, PPO_HYPERS)


def update_times(width: int, size: Size) -> dict[str, Any]:
    """Return the times of an update in each precision, and the medians of their ratios."""
    (env, steps), key, programs = experience(size.batch, size.length), jax.random.key(0), {}
    state = jax.jit(ppo_agent(env, (width, width)).init)(key, PPO_HYPERS)  # parameters are float32 in all of them
    for kind, products in {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "tensorfloat32"}.items():
        agent = ppo_agent(env, (width, width), "bfloat16" if kind == "bfloat16" else "float32")
        with jax.default_matmul_precision(products):
            compiled = jax.jit(agent.update).lower(key, state, steps, PPO_HYPERS).compile()
        programs[kind] = functools.partial(compiled, key, state, steps, PPO_HYPERS)
        if programs[kind]()[1]["epochs"] != EPOCHS:
            raise RuntimeError(f"an update in {kind} ended before its {EPOCHS} epochs")
    taken: dict[str, list[float]] = {kind: [] for kind in programs}
    for _ in range(size.repeats):
        for kind, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program())
            taken[kind].append(time.perf_counter() - began)
    figures = {f"{kind}_milliseconds": round(1e3 * statistics.median(times), 2) for kind, times in taken.items()}
    for kind in ("float32", "tf32"):
        ratios = [other / ours for other, ours in zip(taken[kind], taken["bfloat16"], strict=True)]
        figures[f"{kind}_over_bfloat16"] = round(statistics.median(ratios), 2)
    return figures | {"steps_in_update": size.length * size.batch}


def main() -> None:
    """Measure the parts that are named, or all, the short ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ("agents", "precision", "envs")
    parser.add_argument("parts", nargs="*", default=every, help=f"of {', '.join(every)}; all if none is named")
    parts, began = parser.parse_args().parts, time.perf_counter()
    if unknown := set(parts) - set(every):
        parser.error(f"parts has {', '.join(sorted(unknown))}; it takes {', '.join(every)}")
    size = SMALL if (small := jax.devices()[0].platform == "cpu") else FULL
    print(f"On {machine()}" + (": no accelerator, so all is small, and says nothing of one." if small else "."))
    if "agents" in parts:
        kept(f"PPO, CartPole-v1, {size.agents} agents", lambda: many_agents(size), began)
    if "precision" in parts:
        for width in size.widths:
            kept(f"PPO's update, {width}-{width}", functools.partial(update_times, width, size), began)
    if "envs" in parts:
        for num_envs in size.num_envs:
            for name, game in itertools.product(("PPO", "DQN"), MINIBATCHES):
                measure = functools.partial(training, name, game, num_envs, size)
                kept(f"{name}, {game}, {num_envs} environments", measure, began)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
