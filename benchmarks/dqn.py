"""DQN on CartPole: 10 environments, one update of batch 128 per 10 steps, 120-84 network, replay of 10 000.

With `--peer PYTHON`, a Python that has rejax 0.1.3 beside gymnax 0.0.9 (in its own environment), the same setting is
timed there too, run by run in turn, with rejax's 64-64 network in both; the ratio is what to compare.
"""

from __future__ import annotations

import argparse
import statistics

import jax
from _measure import in_turn, record, seconds

from purerl import envs, loop, networks, replay
from purerl.agents import dqn
from purerl.base import cast_hypers

STEPS, ENVS, CAPACITY, BATCH, STARTS = 500_000, 10, 10_000, 128, 10_000

PEER = """
import jax, jax.numpy as jnp
from rejax import DQN
agent = DQN.create(env="CartPole-v1", num_envs=10, batch_size=128, buffer_size=10_000, fill_buffer=10_000,
    total_timesteps=500_000, eval_freq=500_000, skip_initial_evaluation=True, learning_rate=2.5e-4, num_epochs=1)
agent = agent.replace(eval_callback=lambda *_: jnp.zeros(1))
train = jax.jit(agent.train)
program = lambda: train(jax.random.key(0))
"""


def program(hidden: tuple[int, ...]):
    """Return a whole training run as a compiled program without arguments."""
    env = envs.make("CartPole-v1", ENVS)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, hidden), double=False)
    buffer = replay.uniform(env.spec, CAPACITY)
    collect = replay.with_replay(learner, buffer, batch_size=BATCH, updates=0)
    agent = replay.with_replay(learner, buffer, batch_size=BATCH)

    @jax.jit
    def train(key, hypers):
        run = loop.begin(key, collect, env, hypers)
        run, _ = loop.advance(run, collect, env, hypers, iterations=STARTS // ENVS)
        return loop.advance(run, agent, env, hypers, iterations=(STEPS - STARTS) // ENVS, rows=10)

    hypers = cast_hypers(dqn.Hypers())
    return lambda: train(jax.random.key(0), hypers)


def against_peer(python: str, repeats: int) -> dict[str, float]:
    """Return both libraries' steps per CPU-second, timed in turn, and the median ratio."""
    taken, _ = in_turn(program((64, 64)), {"rejax": (python, PEER)}, repeats=repeats)
    pairs = [(mine[1], theirs[1]) for mine, theirs in zip(taken["purerl"], taken["rejax"], strict=True)]
    return {
        "steps_per_cpu_second": round(STEPS / statistics.median(mine for mine, _ in pairs)),
        "rejax_steps_per_cpu_second": round(STEPS / statistics.median(theirs for _, theirs in pairs)),
        "ratio": round(statistics.median(theirs / mine for mine, theirs in pairs), 2),
    }


def main() -> None:
    """Time DQN, alone or against a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with rejax 0.1.3 and gymnax 0.0.9")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    took = seconds(program((120, 84)), repeats=arguments.repeats)
    speed = {"steps_per_cpu_second": round(STEPS / took["cpu"]), "steps_per_second": round(STEPS / took["wall"])}
    record("dqn", {"case": "120-84", **speed})
    if arguments.peer:
        record("dqn", {"case": "64-64, against rejax", **against_peer(arguments.peer, arguments.repeats)})


if __name__ == "__main__":
    main()
