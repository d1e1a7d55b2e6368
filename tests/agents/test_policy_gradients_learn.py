"""What the agents with a policy learn with the defaults of their scripts, over several seeds (slow tier)."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import load

from purerl import results

# Script, environment, steps, seeds, and between what the mean greedy return must lie.
CLAIMS = [
    ("reinforce", "CartPole-v1", 200_000, 10, 450, 500),
    ("a2c", "CartPole-v1", 200_000, 10, 475, 500),
    ("q_actor_critic", "CartPole-v1", 200_000, 10, 400, 500),
    ("ppo", "CartPole-v1", 500_000, 10, 490, 500),
    ("trpo", "CartPole-v1", 100_000, 5, 450, 500),
    ("ppo", "Acrobot-v1", 500_000, 10, -90, -60),
    ("trpo", "Acrobot-v1", 200_000, 10, -95, -60),
    ("ppo", "Pendulum-v1", 1_000_000, 10, -250, -136),
    ("trpo", "Pendulum-v1", 300_000, 10, -250, -136),
    ("ppo_minatar", "Breakout-MinAtar", 10_000_000, 3, 23, 1000),
]

# Environment, steps, seeds, and by how much PPO is better for normalised observations and scaled returns, at least.
GAINS = [
    ("MountainCarContinuous-v0", 300_000, 5, 80),
    ("Pendulum-v1", 500_000, 5, 300),
    ("CartPole-v1", 200_000, 5, 0),  # not hurt
]


def run(directory, script, **settings):
    experiment = load(script)
    experiment.main(experiment.Settings(out=directory, **settings))
    return results.load_run(directory).summary


@pytest.mark.slow
@pytest.mark.parametrize(("script", "env", "steps", "seeds", "least", "most"), CLAIMS)
def test_the_mean_over_seeds_is_what_it_should_be(script, env, steps, seeds, least, most, tmp_path, slow_result):
    summary = run(tmp_path / "run", script, env=env, total_steps=steps, seeds=seeds, eval_episodes=100)
    evaluation = summary["evaluation"]
    low, high = evaluation["ci95"]
    scores = " ".join(f"{score:.0f}" for score in evaluation["per_seed"])
    slow_result(
        f"mean {evaluation['mean']:.1f}, IQM {evaluation['iqm']:.1f} [{low:.1f}, {high:.1f}], seeds {scores}; "
        f"{summary['steps_per_second']:.0f} steps/s"
    )
    assert steps <= summary["total_steps"] < 1.01 * steps
    assert len(evaluation["per_seed"]) == seeds
    assert least <= evaluation["mean"] <= most


@pytest.mark.slow
@pytest.mark.parametrize(("env", "steps", "seeds", "gain"), GAINS)
def test_normalisation_helps_where_it_should_and_hurts_nowhere(env, steps, seeds, gain, tmp_path, slow_result):
    def evaluation(on):
        switches = {"normalize_observations": on, "scale_returns": on}
        settings = {"env": env, "total_steps": steps, "seeds": seeds, "eval_episodes": 100} | switches
        return run(tmp_path / str(on), "ppo", **settings)["evaluation"]

    found = {on: evaluation(on) for on in (True, False)}
    slow_result(
        "; ".join(
            f"{'with' if on else 'without'} it {one['mean']:.1f}, IQM [{one['ci95'][0]:.1f}, {one['ci95'][1]:.1f}]"
            for on, one in found.items()
        )
    )
    assert found[True]["mean"] >= found[False]["mean"] + gain


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "settings", "least"),
    [
        ("ppo", {"total_steps": 40_000}, 200),
        ("trpo", {"total_steps": 20_000}, 150),
    ],
)
def test_each_learns_to_balance_a_pole_a_little(script, settings, least, tmp_path):
    """The miniature of the above; a random policy scores 23. The others learn small things in tests of their own."""
    summary = run(tmp_path / "run", script, seeds=2, eval_every=0, **settings)
    assert np.mean(summary["episode_return"]["per_seed"]) > least
