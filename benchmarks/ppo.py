"""PPO on CartPole: 4 environments x 128 steps, 4 epochs x 4 minibatches, 64-64 tanh networks, 500 000 steps.

With `--rejax PYTHON` and `--jaxnasium PYTHON`, Pythons that have rejax 0.1.3 (beside gymnax 0.0.9) and jaxnasium 0.1.1,
each in its own environment, the same setting is timed there too, run by run in turn; the ratios are what to compare.
The floor is the time of the matrix products alone: those of every gradient step, as one program.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
from _measure import compared, in_turn, record, seconds

from purerl import envs, loop, networks, rollout
from purerl.agents import ppo
from purerl.base import cast_hypers

STEPS, ENVS, LENGTH, EPOCHS, MINIBATCHES = 500_000, 4, 128, 4, 4
UPDATES = STEPS // (ENVS * LENGTH)
BATCH = ENVS * LENGTH // MINIBATCHES

REJAX = """
import jax, jax.numpy as jnp
from rejax import PPO
agent = PPO.create(env="CartPole-v1", num_envs=4, num_steps=128, num_epochs=4, num_minibatches=4,
    total_timesteps=500_000, eval_freq=500_000, skip_initial_evaluation=True, learning_rate=2.5e-4, max_grad_norm=0.5,
    agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)})
agent = agent.replace(eval_callback=lambda *_: jnp.zeros(1))
train = jax.jit(agent.train)
program = lambda: train(jax.random.key(0))
"""

JAXNASIUM = """
import equinox as eqx, jax, jaxnasium as jym
from jaxnasium.algorithms import PPO

class Body(eqx.Module):
    layers: list
    out_features: int = eqx.field(static=True)

    def __init__(self, in_features, *, key, **_):
        one, two = jax.random.split(key)
        self.layers = [eqx.nn.Linear(in_features, 64, key=one), eqx.nn.Linear(64, 64, key=two)]
        self.out_features = 64

    def __call__(self, x, **_):
        for layer in self.layers:
            x = jax.nn.tanh(layer(x))
        return x

body = {"body": Body}
agent = PPO(num_envs=4, num_steps=128, num_epochs=4, num_minibatches=4, total_timesteps=500_000, log_function=None,
    normalize_observations=False, normalize_rewards=False, warmup_steps=0, actor_kwargs=body, critic_kwargs=body)
env = jym.make("CartPole-v1")
program = lambda: eqx.filter(agent.train(jax.random.key(0), env), eqx.is_array)
"""


def parts():
    """Return environment, agent and numbers."""
    env = envs.make("CartPole-v1", ENVS)
    networks_of = networks.policy(env.spec), networks.state_values(env.spec)
    agent = ppo.ppo(env.spec, *networks_of, epochs=EPOCHS, minibatches=MINIBATCHES)
    return env, agent, cast_hypers(ppo.Hypers(learning_rate_end_fraction=0.0, learning_rate_horizon=float(UPDATES)))


def training():
    """Return a whole run as a program without arguments."""
    env, agent, hypers = parts()
    train = jax.jit(
        lambda key, hypers: loop.train(key, agent, env, hypers, iterations=UPDATES, length=LENGTH, rows=UPDATES // 8)
    )
    return lambda: train(jax.random.key(0), hypers)


def acting():
    """Return the rollouts of a run alone."""
    env, agent, hypers = parts()
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers))(jax.random.key(0))

    @jax.jit
    def act(run, key, hypers):
        def one(episodes, key):
            keys = rollout.step_keys(key, LENGTH)
            episodes, experience, _ = rollout.unroll(keys, agent, run.agent, env, env.params, episodes, hypers)
            return episodes, jnp.sum(experience.steps.reward)

        return jax.lax.scan(one, run.episodes, jax.random.split(key, UPDATES))

    return lambda: act(run, jax.random.key(1), hypers)


def products():
    """Return the matrix products of all gradient steps alone: forwards, and by weights and by inputs backwards."""
    batch = {size: jax.random.normal(jax.random.key(size), (BATCH, size)) for size in (1, 2, 4, 64)}
    layers = [(4, 64), (64, 64), (64, 2), (4, 64), (64, 64), (64, 1)]
    weights = [0.01 * jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(layers)]

    def step(weights, _):
        after = []
        # Other numbers in every step, or those products that take no weights would be made once for all.
        batch_now = jax.tree.map(lambda leaf: leaf + weights[0][0, 0], batch)
        for (rows, columns), weight in zip(layers, weights, strict=True):
            forwards = batch_now[rows] @ weight
            backwards = batch_now[columns] @ weight.T if rows != 4 else jnp.zeros(())
            gradient = batch_now[rows].T @ batch_now[columns]
            after.append(1e-6 * gradient + weight + 1e-20 * (forwards[0, 0] + backwards.reshape(-1)[0]))
        return after, None

    run = jax.jit(lambda weights: jax.lax.scan(step, weights, length=UPDATES * EPOCHS * MINIBATCHES)[0])
    return lambda: run(weights)


def main() -> None:
    """Time PPO and its parts, alone or against its peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejax", metavar="PYTHON")
    parser.add_argument("--jaxnasium", metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    whole, alone, floor = (seconds(part(), repeats=arguments.repeats) for part in (training, acting, products))
    speed = {"steps_per_second": round(STEPS / whole["wall"]), "steps_per_cpu_second": round(STEPS / whole["cpu"])}
    shares = {
        "acting_share": round(alone["wall"] / whole["wall"], 3),
        "product_share": round(floor["wall"] / whole["wall"], 3),
    }
    record("ppo", {"case": "64-64", **speed, **shares})
    scripts = {"rejax": (arguments.rejax, REJAX), "jaxnasium": (arguments.jaxnasium, JAXNASIUM)}
    peers = {name: peer for name, peer in scripts.items() if peer[0]}
    if not peers:
        return
    taken, _ = in_turn(training(), peers, repeats=arguments.repeats)
    figures = compared(taken, STEPS)
    record("ppo", {"case": f"64-64, against {' and '.join(peers)}", **figures})


if __name__ == "__main__":
    main()
