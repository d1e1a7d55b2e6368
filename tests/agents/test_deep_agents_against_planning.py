"""Deep agents on an MDP that can be enumerated: their greedy returns against the exact ones (slow tier)."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import load

from purerl import envs, planning, results

SEEDS, EPISODES = 5, 200


@pytest.mark.slow
@pytest.mark.parametrize(("script", "steps"), [("dqn", 50_000), ("ppo", 200_000)])
@pytest.mark.parametrize("env", ["CornerGridworld-purerl", "WindyGridworld-purerl"])
def test_greedy_returns_are_the_optimal_ones(script, steps, env, tmp_path, slow_result):
    mdp = envs.enumerate_mdp(env)
    # Undiscounted returns, as they are evaluated, of the policy that is best at the discount that the agents have.
    best = planning.value_iteration(*mdp.arrays, 0.99).policy
    exact = planning.solve_policy(best, *mdp.arrays, 1.0).value
    mean = float(np.sum(np.asarray(mdp.start) * np.asarray(exact)))
    spread = float(np.sqrt(np.sum(np.asarray(mdp.start) * (np.asarray(exact) - mean) ** 2)))
    experiment = load(script)
    experiment.main(
        experiment.Settings(
            env=env,
            total_steps=steps,
            seeds=SEEDS,
            eval_episodes=EPISODES,
            out=tmp_path / "run",
            **({"normalize_observations": False} if script == "ppo" else {}),
        )
    )
    evaluation = results.load_run(tmp_path / "run").summary["evaluation"]
    error = spread / np.sqrt(EPISODES)
    slow_result(f"optimal {mean:.3f} +- {error:.3f}; seeds {' '.join(f'{one:.2f}' for one in evaluation['per_seed'])}")
    assert not any(evaluation["unfinished"])
    np.testing.assert_allclose(evaluation["per_seed"], mean, atol=4 * error + 1e-3)
