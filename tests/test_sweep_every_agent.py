"""Every agent in a sweep: one after another, together, and alone its runs are the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import CASES

from purerl import envs, loop, spread, sweep
from purerl.base import cast_hypers

pytestmark = pytest.mark.slow


def furthest(found, alone, *, exact):
    """How far apart two states are at most, relative to 1 and to what is larger; `exact` allows nothing."""
    apart = [0.0]
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        mine, other = np.asarray(mine, float), np.asarray(other, float)
        apart.append(float(np.max(np.abs(mine - other) / np.maximum(1.0, np.abs(other)), initial=0.0)))
    assert max(apart) <= (0.0 if exact else 1e-5)
    return max(apart)


@pytest.mark.timeout(1800)
def test_a_swept_run_is_what_it_is_alone(slow_result):
    """Tables to the bit after sixty iterations; networks within 1e-5 after one update, however runs are spread."""
    worst = {}
    for case in CASES:
        env = envs.make(case.env, 3)
        agent, base = case.make(env.spec), cast_hypers(case.hypers)
        iterations = 60 if case.table else 1

        def train(key, hypers, env=env, agent=agent, iterations=iterations):
            state = loop.train(key, agent, env, hypers, iterations=iterations, length=2)[0].agent
            keys = (jnp.uint32, jax.dtypes.prng_key)
            return [leaf for leaf in jax.tree.leaves(state) if not any(jnp.issubdtype(leaf.dtype, k) for k in keys)]

        keys = jax.random.split(jax.random.key(4), 2)
        first = next(iter(vars(base)))
        batch = sweep.listed(base, **{first: [float(getattr(base, first)) * scale for scale in (0.9, 1.1)]})
        alone = jax.jit(train)
        expected = [
            alone(keys[seed], jax.tree.map(lambda leaf: leaf[point], batch.values))  # noqa: B023
            for point, seed in np.ndindex(2, 2)
        ]
        for options in ({"devices": 2, "together": 1}, {"devices": 1, "together": 4}):
            outputs = sweep.run(train, keys, batch, spread=spread.choose(4, **options)).outputs
            for place, (point, seed) in enumerate(np.ndindex(2, 2)):
                found = [leaf[point, seed] for leaf in outputs]
                apart = furthest(found, expected[place], exact=case.table)
                worst[case.name] = max(apart, worst.get(case.name, 0.0))
    exact = sum(case.table for case in CASES)
    slow_result(f"{exact} agents equal to the bit, {len(CASES) - exact} with networks within {max(worst.values()):.1e}")
