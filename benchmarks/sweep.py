"""Many seeds at once: 32 runs of PPO on CartPole (4 x 128, 4 epochs x 4 minibatches, 64-64) and 16 of DQN.

Total steps per second, by `sweep.run` over all cores, against one run alone; or, with `--rejax PYTHON` or
`--jaxnasium PYTHON` (see ppo.py), against 32 vmapped seeds of theirs, run by run in turn, which takes minutes. The
ratios are what to compare. Peak memory is that of each process, compilation included.
"""

from __future__ import annotations

import argparse

import jax

from purerl import spread

spread.use_all_cores()

import ppo as ppo_benchmark  # noqa: E402
from _measure import compared, in_turn, record, seconds  # noqa: E402

from purerl import envs, loop, networks, replay, sweep  # noqa: E402
from purerl.agents import dqn  # noqa: E402
from purerl.base import cast_hypers  # noqa: E402

SEEDS, STEPS = 32, 100_000  # of PPO; the speed of a run does not depend on its length
DQN_SEEDS, DQN_STEPS = 16, 50_000
ITERATIONS = STEPS // (ppo_benchmark.ENVS * ppo_benchmark.LENGTH)


def many(script: str, call: str, steps: int, seeds: int) -> str:
    """Return a peer's script with `call` over so many seeds, of so many steps, in place of its one run."""
    lines = script.replace("500_000", str(steps)).strip().splitlines()[:-1]
    return "\n".join([*lines, f"keys = jax.random.split(jax.random.key(0), {seeds})", call, ""])


def ppo_train():
    """Return PPO as a pure function of key and hypers, and its hypers."""
    env, agent, hypers = ppo_benchmark.parts()

    def train(key, hypers):
        return loop.train(key, agent, env, hypers, iterations=ITERATIONS, length=ppo_benchmark.LENGTH, rows=1)[1]

    return train, hypers


def dqn_train():
    """Return DQN with replay as a pure function of key and hypers, and its hypers."""
    env = envs.make("CartPole-v1", 10)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (120, 84)))
    agent = replay.with_replay(learner, replay.uniform(env.spec, 10_000), batch_size=128)

    def train(key, hypers):
        return loop.train(key, agent, env, hypers, iterations=DQN_STEPS // 10, rows=1)[1]

    return train, cast_hypers(dqn.Hypers())


def swept(train, hypers, seeds):
    """Return a sweep of so many seeds as a program without arguments."""
    keys, batch = jax.random.split(jax.random.key(0), seeds), sweep.grid(hypers)
    return lambda: sweep.run(train, keys, batch).outputs


def alone(train, hypers):
    """Return one run as a program without arguments."""
    one = jax.jit(train)
    return lambda: one(jax.random.key(0), hypers)


def against_one_run(repeats: int) -> None:
    """Time sweeps against single runs."""
    for name, parts, seeds, steps in (
        ("PPO", ppo_train(), SEEDS, STEPS),
        ("DQN", dqn_train(), DQN_SEEDS, DQN_STEPS),
    ):
        one = seconds(alone(*parts), repeats=repeats)
        several = seconds(swept(*parts, seeds), repeats=repeats)
        figures = {
            "steps_per_second": round(seeds * steps / several["wall"]),
            "steps_per_second_alone": round(steps / one["wall"]),
            "times_one_run": round(seeds * one["wall"] / several["wall"], 2),
            "times_one_run_by_cpu": round(seeds * one["cpu"] / several["cpu"], 2),
        }
        record("sweep", {"case": f"{name}, {seeds} seeds", **figures})


def against_peers(pythons: dict[str, str], repeats: int) -> None:
    """Time a sweep against those of other libraries."""
    calls = {
        "rejax": (ppo_benchmark.REJAX, "train = jax.jit(jax.vmap(agent.train))\nprogram = lambda: train(keys)"),
        "jaxnasium": (
            ppo_benchmark.JAXNASIUM,
            "train = eqx.filter_vmap(lambda key: eqx.filter(agent.train(key, env), eqx.is_array))\n"
            "program = lambda: train(keys)",
        ),
    }
    scripts = {name: many(*calls[name], STEPS, SEEDS) for name in pythons}
    peers = {name: (python, scripts[name]) for name, python in pythons.items()}
    taken, peaks = in_turn(swept(*ppo_train(), SEEDS), peers, repeats=repeats)
    figures = compared(taken, SEEDS * STEPS)
    figures |= {f"{name}_peak_memory_mib": peak for name, peak in peaks.items()}
    record("sweep", {"case": f"PPO, {SEEDS} seeds, against {' and '.join(peers)}", **figures})


def main() -> None:
    """Time sweeps against single runs, or against peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejax", metavar="PYTHON")
    parser.add_argument("--jaxnasium", metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    named = {"rejax": arguments.rejax, "jaxnasium": arguments.jaxnasium}
    pythons = {name: python for name, python in named.items() if python}
    if pythons:
        against_peers(pythons, arguments.repeats)
    else:
        against_one_run(arguments.repeats)


if __name__ == "__main__":
    main()
