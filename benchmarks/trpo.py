"""TRPO on CartPole at sb3-contrib's defaults: 4 environments x 2048 steps, 15 steps of conjugate gradient, 10 passes of
the critic in batches of 128, Adam at 1e-3, lambda .95, 64-64 tanh networks. sb3-contrib makes 5 300 steps a second so.

Also what the parts of an update take: the step of the policy, by both ways to multiply with the Fisher matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from _measure import record, seconds

from purerl import envs, loop, networks, trust_region
from purerl.agents import trpo
from purerl.base import cast_hypers

STEPS, ENVS, LENGTH = 81_920, 4, 2048
REFERENCE = 5_300  # sb3-contrib's steps per second


def training():
    """Return ten updates as a program without arguments."""
    env = envs.make("CartPole-v1", ENVS)
    network = networks.policy(env.spec), networks.state_values(env.spec)
    agent = trpo.trpo(env.spec, *network, cg_iterations=15, critic_epochs=10, critic_minibatches=64)
    hypers = cast_hypers(trpo.Hypers(trace_decay=0.95, damping=0.1))
    iterations = STEPS // (ENVS * LENGTH)
    train = jax.jit(lambda key, hypers: loop.train(key, agent, env, hypers, iterations=iterations, length=LENGTH))
    return lambda: train(jax.random.key(0), hypers)


def conjugate_gradient(*, gauss_newton: bool):
    """Return fifteen steps of conjugate gradient over the states of one rollout."""
    env = envs.make("CartPole-v1", ENVS)
    policy = networks.policy(env.spec)
    states = jax.random.normal(jax.random.key(0), (ENVS * LENGTH, 4))
    params = policy.init(jax.random.key(1), states)
    target = jax.tree.map(lambda leaf: 0.01 * jnp.ones_like(leaf), params)

    def solve(params, target):
        old = policy.apply(params, states)

        def divergence(distribution):
            return jnp.mean(old.kl(distribution))

        def outputs(params):
            return policy.apply(params, states)

        gauss_newton_product = trust_region.gauss_newton_product(outputs, divergence, params)

        def product(vector):
            if gauss_newton:
                return jax.tree.map(lambda curved, part: curved + 0.1 * part, gauss_newton_product(vector), vector)
            return trust_region.fisher_vector_product(
                lambda params: divergence(outputs(params)), params, vector, damping=0.1
            )

        return trust_region.conjugate_gradient(product, target, iterations=15, tolerance=0.0)

    run = jax.jit(solve)
    return lambda: run(params, target)


def main() -> None:
    """Time TRPO and its conjugate gradient."""
    whole = seconds(training())
    speed = {"steps_per_second": round(STEPS / whole["wall"]), "steps_per_cpu_second": round(STEPS / whole["cpu"])}
    ratio = round(speed["steps_per_second"] / REFERENCE, 1)
    record("trpo", {"case": "sb3-contrib's defaults", **speed, "ratio_to_its_5300": ratio})
    ways = {
        name: seconds(conjugate_gradient(gauss_newton=name == "gauss_newton"))
        for name in ("gauss_newton", "jvp_of_grad")
    }
    updates = STEPS // (ENVS * LENGTH)
    figures = {f"{name}_milliseconds": round(1e3 * taken["wall"], 1) for name, taken in ways.items()}
    share = round(updates * ways["gauss_newton"]["cpu"] / whole["cpu"], 2)
    record("trpo", {"case": "15 steps of conjugate gradient", **figures, "share_of_an_update": share})


if __name__ == "__main__":
    main()
