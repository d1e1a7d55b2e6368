"""Scripts of agents with a policy: their flags, the comparison of all agents, and what a clock does to a critic."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scripts import load

from purerl import cli, envs, policy_cli
from purerl.agents import ppo

SMALL = {"hidden": (8,), "seeds": 2, "eval_every": 0, "log_every": 64}
TINY = {
    "reinforce": {"num_envs": 2, "length": 16, "total_steps": 64, "window": 20},
    "q_actor_critic": {"num_envs": 2, "length": 4, "total_steps": 64},
    "a2c": {"num_envs": 2, "length": 4, "total_steps": 64},
    "ppo": {"num_envs": 2, "length": 8, "total_steps": 64, "epochs": 2, "minibatches": 2},
    "trpo": {"num_envs": 2, "length": 8, "total_steps": 64, "critic_epochs": 2, "critic_minibatches": 2},
}


def run(name, out, **settings):
    script = load(name)
    return script.main(script.Settings(out=out, **{**SMALL, **TINY[name], **settings}))


def fit(name, **settings):
    """Look, in shapes, whether a script's agents are made and take what they will be handed."""
    script = load(name)
    settings = script.Settings(**{**SMALL, **TINY[name], **settings})
    env = envs.make(settings.env, settings.num_envs)
    cli.require_fitting(
        script.phases(settings, env.spec), env, cli.annealed(settings, settings.hypers), settings.length
    )


def test_a_script_runs_and_leaves_its_settings(tmp_path):
    """One of them; in the slow tier all learn."""
    found = run("ppo", tmp_path / "run")
    assert found.summary["agent"] == "ppo"
    assert found.summary["total_steps"] == 64
    assert found.settings["length"] == TINY["ppo"]["length"]
    assert not found.summary["diverged"]


@pytest.mark.parametrize("name", TINY)
def test_every_script_s_agents_fit_their_environments(name):
    fit(name)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [{"squash": True, "shared_torso": True}, {"normalize_observations": False, "scale_returns": False}],
)
def test_continuous_actions_and_every_way_to_make_networks(options):
    fit("ppo", env="Pendulum-v1", **options)


def test_a_horizon_of_zero_is_the_whole_run():
    settings = policy_cli.Settings(num_envs=4, length=128, total_steps=51_200)
    hypers = ppo.Hypers(learning_rate_horizon=0.0)
    assert cli.annealed(settings, hypers).learning_rate_horizon == 100
    assert cli.annealed(settings, dataclasses.replace(hypers, learning_rate_horizon=7.0)).learning_rate_horizon == 7


def test_the_flags_make_the_networks_and_wrappers_that_they_name():
    spec = envs.make("Pendulum-v1", 2).spec
    separate = policy_cli.networks_of(policy_cli.Settings(hidden=(8,)), spec)
    shared = policy_cli.networks_of(policy_cli.Settings(hidden=(8,), shared_torso=True), spec)
    assert separate.torso is None
    assert shared.torso is not None

    def state(**flags):
        def agent_for(spec):
            return ppo.ppo(spec, separate.actor, separate.critic)

        wrapped = policy_cli.normalized(policy_cli.Settings(**flags), agent_for, spec)
        return jax.eval_shape(wrapped.init, jax.random.key(0), ppo.Hypers())

    assert isinstance(state(), ppo.State)
    assert hasattr(state(scale_returns=True), "running")
    assert hasattr(state(normalize_observations=True), "acting")
    assert hasattr(state(normalize_observations=True, scale_returns=True).learner, "running")


def test_what_a_script_cannot_run_is_told_in_a_sentence(tmp_path):
    for name, settings, sentence in [
        ("ppo", {"minibatches": 3}, "minibatches is 3, which does not divide the 16 steps"),
        ("ppo", {"minibatches": 16}, "minibatches is 16, of one step each: normalize_advantages takes two or more"),
        ("reinforce", {"shared_torso": True}, "reinforce takes networks that are apart"),
        ("q_actor_critic", {"env": "Pendulum-v1"}, "needs a discrete action space"),
        ("a2c", {"squash": True}, "squash takes an action space with finite bounds"),
        ("ppo", {"env": "FrozenLake-misc", "normalize_observations": True}, "takes some that are arrays"),
    ]:
        with pytest.raises(cli.BadInput, match=sentence):
            run(name, tmp_path / "run", **settings)


@pytest.mark.thorough
def test_all_agents_are_compared_on_one_picture(tmp_path, capsys, monkeypatch):
    compare = load("compare")
    small = {}
    for name, script in {"A2C": "a2c", "Q-learning": "q_learning", "QAC": "q_actor_critic"}.items():
        small[name] = load(script)
    monkeypatch.setattr(compare, "SCRIPTS", small)
    compare.main(compare.Settings(env="Pendulum-v1", total_steps=2_048, seeds=2, out=tmp_path / "all"))
    printed = capsys.readouterr().out
    assert "Q-learning is left out: q_learning needs a discrete observation space" in printed
    assert "QAC is left out" in printed
    assert (tmp_path / "all" / "compare.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "all" / "a2c" / "summary.json").read_text())
    assert summary["seeds"] == 2
    assert any(line.startswith("A2C") for line in printed.splitlines()[-2:])


def test_the_points_of_a_comparison_are_means_over_the_episodes_up_to_them():
    compare = load("compare")
    metrics = {
        "environment_steps": np.array([[10, 20, 30, 40]] * 2),
        "episodes": np.array([[1.0, 3.0, 0.0, 0.0], [2.0, 0.0, 1.0, 1.0]]),
        "episode_return": np.array([[4.0, 8.0, np.nan, np.nan], [1.0, np.nan, 5.0, 7.0]]),
    }
    found = compare._at(np.array([20.0, 40.0]), metrics)
    np.testing.assert_allclose(found, [[7.0, np.nan], [1.0, 6.0]])


@pytest.mark.thorough
def test_observations_of_other_types_are_normalised_for_agents_that_keep_them():
    """REINFORCE keeps what it observed, and FourRooms shows integers in an array: the moments make floats of them."""
    fit("reinforce", env="FourRooms-misc", normalize_observations=True)


def test_what_the_truncation_script_cannot_run_is_told_before_it_makes_a_directory(tmp_path):
    script = load("pendulum_truncation")
    hypers = dataclasses.replace(script.Settings().hypers, discount=1.0)
    for settings, sentence in [
        ({"total_steps": 7_999}, "total_steps is 7999; it takes ten episodes in each environment, 8000"),
        ({"hypers": hypers}, "hypers.discount is 1.0; without an end it takes one below 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            script.Settings(**settings)
    with pytest.raises(cli.BadInput, match="critic_minibatches is 8, which does not divide the 12 steps"):
        script.main(script.Settings(length=3, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_critic_that_takes_the_clock_for_termination_is_off_and_purerl_s_is_not(slow_result):
    """Of a policy that stays as it is: no step is small enough to be accepted."""
    script = load("pendulum_truncation")
    fast = {"learning_rate": 1e-2, "learning_rate_end_fraction": 0.1, "learning_rate_horizon": 15.0}
    hypers = dataclasses.replace(script.Settings().hypers, delta=0.0, discount=0.95, trace_decay=0.9, **fast)
    settings = script.Settings(seeds=2, total_steps=40_000, num_envs=8, length=250, hypers=hypers)
    right, wrong = (script.describe(script.judge(settings, treatment)) for treatment in script.TREATMENTS)
    assert abs(right["mean_collected"] - wrong["mean_collected"]) < 1e-3  # the same policies
    scale = abs(right["mean_collected"])
    assert abs(right["mean_error"]) < 0.04 * scale
    assert wrong["mean_error"] > 0.06 * scale
    assert wrong["mean_error_ci95"][0] > abs(right["mean_error"])
    slow_result(f"errors {right['mean_error']:.3f} and {wrong['mean_error']:.1f} of {scale:.0f}")
