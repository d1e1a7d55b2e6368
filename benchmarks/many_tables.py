"""A thousand Q-learning agents at once, each in a CliffWalking of its own, on all cores: environment steps per second.

The agents are vmapped, and one host device per core takes its share of them: XLA's threads within one device would wait
for each other at every little step.
"""

from __future__ import annotations

import os

import jax

CORES = os.cpu_count() or 1
jax.config.update("jax_num_cpu_devices", CORES)  # before jax starts, and importing environments starts it

from _measure import record, seconds  # noqa: E402

from purerl import envs, loop  # noqa: E402
from purerl.agents import q_learning  # noqa: E402
from purerl.base import cast_hypers  # noqa: E402

AGENTS, STEPS = 1_000, 20_000


def main() -> None:
    """Time them on one device and on one per core."""
    env = envs.make("CliffWalking-purerl", 1)
    agent = q_learning.q_learning(env.spec)
    hypers = cast_hypers(q_learning.Hypers())

    def train(key, hypers):
        return loop.train(key, agent, env, hypers, iterations=STEPS)

    for devices in sorted({1, CORES}):
        many = AGENTS - AGENTS % devices
        mesh = jax.make_mesh((devices,), ("seeds",), devices=jax.devices()[:devices])
        shares = jax.sharding.PartitionSpec("seeds")
        program = jax.jit(
            jax.shard_map(
                jax.vmap(train, (0, None)),
                mesh=mesh,
                in_specs=(shares, jax.sharding.PartitionSpec()),
                out_specs=shares,
                # The check takes the two branches of a reset for different.
                check_vma=False,
            )
        )
        keys = jax.device_put(jax.random.split(jax.random.key(0), many), jax.NamedSharding(mesh, shares))
        took = seconds(lambda program=program, keys=keys: program(keys, hypers))
        record(
            "many_tables",
            {
                "case": f"{many} vmapped, {devices} host device{'s' * (devices > 1)}",
                "steps_per_second": round(many * STEPS / took["wall"]),
                "steps_per_cpu_second": round(many * STEPS / took["cpu"]),
            },
        )


if __name__ == "__main__":
    main()
