"""What agents do on meshes of eight devices: a script that tests start, as a process has its devices once for all.

export JAX_NUM_CPU_DEVICES=8
python tests/on_meshes.py ppo:CartPole-v1:4,2 dqn:CartPole-v1:2,4    # a line of JSON for each, against one device
JAX_ENABLE_X64=1 python tests/on_meshes.py ppo:CartPole-v1:4,2       # in float64, from the same parameters
python tests/on_meshes.py sweep:CartPole-v1:2,2                      # two of four runs side by side on such a mesh
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl import compiled, driver, envs, loop, networks, points, precision, replay, sharding, spread, sweep, training
from purerl.agents import dqn, ppo, trpo
from purerl.base import cast_hypers

X64 = jax.config.read("jax_enable_x64")
NUM_ENVS, GROUPS, LENGTH, UPDATES = 16, 8, 8, 10


def agent_of(name: str, spec: Any) -> tuple[Any, Any]:
    """Return an agent with two layers of 32, to be split, and its numbers."""
    if name == "dqn":
        learner = dqn.dqn(spec, networks.action_values(spec, (32, 32)))
        buffer = replay.uniform(spec, 50 * spec.num_envs)
        return replay.with_replay(learner, buffer, batch_size=32, updates=2), cast_hypers(dqn.Hypers())
    dtypes = precision.Precision(*(jnp.float64,) * 3) if X64 else precision.float32
    both = [networks.policy(spec, (32, 32)), networks.state_values(spec, (32, 32))]
    both = [precision.with_precision(network, dtypes) for network in both]
    if name == "ppo":
        return ppo.ppo(spec, *both, epochs=2, minibatches=2), cast_hypers(ppo.Hypers())
    # trpo's own damping, .001, lets rounding grow a hundred times as much: there the order of the samples tells.
    damping = 1e-3 if name == "trpo_undamped" else 0.1
    return trpo.trpo(spec, *both, critic_epochs=2, critic_minibatches=2), cast_hypers(trpo.Hypers(damping=damping))


def updated(name: str, env_name: str, data: int, model: int) -> tuple[list[Any], str]:
    """Return the runs before, after one and after ten updates, and the text of the program."""
    env = envs.make(env_name, NUM_ENVS, groups=GROUPS)
    agent, hypers = agent_of(name, env.spec)
    layout = sharding.layout(sharding.mesh(data=data, model=model))

    def begin(key):
        return loop.begin(key, agent, env, hypers, layout=layout)

    places = sharding.shardings(layout, jax.eval_shape(begin, jax.random.key(0)))
    if X64:  # what initialises rounds in float32
        run = jax.device_put(begin(jax.random.key(0)), places)
    else:
        run = jax.jit(begin, out_shardings=places)(jax.random.key(0))

    def advance(run):
        return loop.advance(run, agent, env, hypers, iterations=1, length=LENGTH, layout=layout)[0]

    program = jax.jit(advance, out_shardings=places).lower(run).compile()
    runs = [run]
    for _ in range(UPDATES):
        runs.append(program(runs[-1]))
    return [runs[0], runs[1], runs[-1]], program.as_text()


def far(one: Any, other: Any) -> float:
    """Return the largest difference of floats; infinite where one is not finite."""
    pairs = [pair for pair in zip(*map(jax.tree.leaves, (one, other)), strict=True) if pair[0].dtype.kind == "f"]
    found = max((float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0.0)) for a, b in pairs), default=0.0)
    return found if np.isfinite(found) else float("inf")


def same(one: Any, other: Any) -> bool:
    """Return whether all that is no float is equal to the bit."""
    discrete = [pair for pair in zip(*map(jax.tree.leaves, (one, other)), strict=True) if pair[0].dtype.kind != "f"]
    assert discrete
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in discrete)


def learned(state: Any) -> tuple[Any, Any]:
    """Return the parameters and the optimizer's state."""
    state = getattr(state, "learner", state)
    return state.params, state.optimizer


def split(run: Any) -> list[int]:
    """Return of what is split over `model`: how many leaves, their bytes, and the different sums of it on devices."""
    leaves = [leaf for leaf in jax.tree.leaves(learned(run.agent)) if "model" in tuple(leaf.sharding.spec)]
    own: Counter[Any] = Counter()
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            own[shard.device] += shard.data.nbytes
    return [len(leaves), sum(leaf.nbytes for leaf in leaves), *{*own.values()}]


def swept(env_name: str, data: int, model: int) -> dict[str, Any]:
    """Return how far runs swept on a mesh, two side by side and two at a time, are from those on single devices."""
    env = envs.make(env_name, NUM_ENVS, groups=2)
    agent, hypers = agent_of("ppo", env.spec)
    keys, batch = driver.seed_keys(0, 2), points.grid(hypers, learning_rate=[1e-3, 3e-4])
    found = []
    for layout in (None, sharding.layout(sharding.mesh(data=data, model=model, run=2))):
        train = training.trainer([loop.Phase(agent, 2 * NUM_ENVS * LENGTH)], env, length=LENGTH, layout=layout)
        found.append(sweep.run(train, keys, batch, spread=spread.choose(4, layout=layout, together=2)).outputs)
    one, split = ({name: np.asarray(column) for name, column in outputs.items()} for outputs in found)
    return {
        "episodes": bool(np.array_equal(one["episodes"], split["episodes"])),
        "metrics": max(float(np.nanmax(np.abs(one[name] - split[name]))) for name in ("value_loss", "entropy")),
        "runs differ": len({float(loss) for loss in split["value_loss"].flat}) == 4,
    }


def main() -> None:
    """Print what is asked for."""
    reference: dict[Any, Any] = {}
    for asked in sys.argv[1:]:
        name, env_name, sizes = asked.split(":")
        data, model = map(int, sizes.split(","))
        if name == "sweep":
            print(json.dumps({"asked": asked} | swept(env_name, data, model)), flush=True)
            continue
        if (name, env_name) not in reference:
            reference[name, env_name] = updated(name, env_name, 1, 1)[0]
        _, one, ten = reference[name, env_name]
        runs, text = updated(name, env_name, data, model)
        found = [one[:2] for one in compiled.collectives(text)]
        print(
            json.dumps(
                {
                    "asked": asked,
                    "params": far(learned(runs[1].agent)[0], learned(one.agent)[0]),
                    "params after ten": far(learned(runs[2].agent)[0], learned(ten.agent)[0]),
                    "states": far(runs[2].episodes.env_state, ten.episodes.env_state),
                    "discrete states": same(runs[2].episodes.env_state, ten.episodes.env_state),
                    "split": split(runs[2]),
                    "collectives": found,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
