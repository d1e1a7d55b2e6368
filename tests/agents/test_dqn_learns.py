"""What DQN learns with the defaults of its experiments, over several seeds (slow tier)."""

from __future__ import annotations

import pytest
from scripts import load

from purerl import results


def run(directory, script="dqn", **settings):
    experiment = load(script)
    experiment.main(experiment.Settings(out=directory, **settings))
    return results.load_run(directory).summary


def described(evaluation, summary):
    low, high = evaluation["ci95"]
    scores = " ".join(f"{score:.0f}" for score in evaluation["per_seed"])
    return (
        f"IQM {evaluation['iqm']:.1f} [{low:.1f}, {high:.1f}], mean {evaluation['mean']:.1f}, seeds {scores}; "
        f"{summary['steps_per_second']:.0f} steps/s"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("env", "at_least", "worst"), [("CartPole-v1", 480, 300), ("Acrobot-v1", -100, -500)])
def test_dqn_learns_over_ten_seeds(env, at_least, worst, tmp_path, slow_result):
    summary = run(tmp_path / "run", env=env, seeds=10, eval_episodes=100)
    evaluation = summary["evaluation"]
    slow_result(described(evaluation, summary))
    assert summary["total_steps"] == 500_000
    assert evaluation["iqm"] >= at_least
    assert min(evaluation["per_seed"]) >= worst


@pytest.mark.slow
def test_dqn_plays_breakout_over_three_seeds(tmp_path, slow_result):
    summary = run(tmp_path / "run", "dqn_minatar", seeds=3, eval_episodes=100)
    evaluation = summary["evaluation"]
    slow_result(described(evaluation, summary))
    assert (summary["env"], summary["total_steps"]) == ("Breakout-MinAtar", 1_000_000)
    assert evaluation["iqm"] >= 5
