"""Tabular agents, one in one environment each, through the real seam and loop: environment steps per CPU-second."""

from __future__ import annotations

import functools

import jax
from _measure import record, seconds

from purerl import envs, loop
from purerl.agents import double_q_learning, expected_sarsa, n_step_sarsa, q_learning, sarsa, sarsa_lambda
from purerl.base import cast_hypers

STEPS = 2_000_000


def main() -> None:
    """Time every table on CliffWalking."""
    for name, factory, hypers in (
        ("q_learning", q_learning.q_learning, q_learning.Hypers()),
        ("double_q_learning", double_q_learning.double_q_learning, double_q_learning.Hypers()),
        ("sarsa", sarsa.sarsa, sarsa.Hypers()),
        ("expected_sarsa", expected_sarsa.expected_sarsa, expected_sarsa.Hypers()),
        ("4_step_sarsa", functools.partial(n_step_sarsa.n_step_sarsa, n=4), n_step_sarsa.Hypers()),
        ("sarsa_lambda", sarsa_lambda.sarsa_lambda, sarsa_lambda.Hypers()),
    ):
        env = envs.make("CliffWalking-purerl", 1)
        agent = factory(env.spec)
        program = jax.jit(
            lambda key, hypers, agent=agent, env=env: loop.train(key, agent, env, hypers, iterations=STEPS, rows=10)
        )
        took = seconds(lambda program=program, hypers=hypers: program(jax.random.key(0), cast_hypers(hypers)))
        record(
            "tabular",
            {
                "case": name,
                "steps_per_cpu_second": round(STEPS / took["cpu"]),
                "steps_per_second": round(STEPS / took["wall"]),
                "nanoseconds_per_step": round(took["cpu"] / STEPS * 1e9, 1),
            },
        )


if __name__ == "__main__":
    main()
