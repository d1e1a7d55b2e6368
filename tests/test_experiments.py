"""Experiment scripts: what they leave behind, which flags reach the run, and how bad input ends."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import load

from purerl import cli, results

ROOT = Path(__file__).resolve().parent.parent
FILES = {"settings.json", "metrics.npz", "summary.json", "learning_curve.png", "policy.zip"}
TABULAR = ["--total-steps", "400", "--num-envs", "2", "--eval-episodes", "3"]
SMALL = ["--learning-starts", "40", "--capacity", "100", "--batch-size", "8", "--hidden", "8"]
TINY = {
    "q_learning": TABULAR,
    "sarsa": TABULAR,
    "dqn": [*TABULAR, "--total-steps", "200", *SMALL],
    "cliff_walking": [],
}
# What a pole does not do by itself in so few steps: fall.
SHORT = ["--env-params.max-steps-in-episode", "7"]
# Episodes of seven steps, half of which are at random: some fall off the cliff, and returns differ.
LUCK = [*SHORT, "--hypers.exploration", "0.5"]


def run(name, out, *flags):
    script = load(name)
    script.main(cli.parse(script.Settings, [*TINY[name], "--out", str(out), *flags]))
    return results.load(out)


@pytest.fixture(scope="module", params=["q_learning", pytest.param("dqn", marks=pytest.mark.thorough)])
def left(request, tmp_path_factory):
    """A finished run of two seeds: the script's name and its directory."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    run(request.param, out, "--seeds", "2", "--eval-every", "100", "--seed", "3", *SHORT)
    return request.param, out


def test_a_run_leaves_its_five_files_and_nothing_else(left):
    _, out = left
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_settings_are_those_of_the_command_line(left):
    name, out = left
    settings = json.loads((out / "settings.json").read_text())
    assert settings["agent"] == name
    assert (settings["seeds"], settings["seed"], settings["num_envs"]) == (2, 3, 2)
    assert settings["eval_every"] == 100
    assert settings["out"] == str(out)
    assert "learning_rate" in settings["hypers"]


def test_the_summary_says_what_was_run_and_what_came_of_it(left):
    name, out = left
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {
        *("agent", "env", "seeds", "total_steps", "hypers", "episode_return", "evaluation"),
        *("diverged", "seconds", "steps_per_second", "versions"),
    }
    steps = {"q_learning": 400, "dqn": 200}[name]
    assert summary["agent"] == name
    assert summary["env"] == {"q_learning": "CliffWalking-purerl", "dqn": "CartPole-v1"}[name]
    assert summary["seeds"] == 2
    assert summary["total_steps"] == steps
    assert set(summary["hypers"]) == {field for field in vars(load(name).Settings().hypers)}
    for scores in (summary["episode_return"], summary["evaluation"]):
        assert {"per_seed", "mean", "iqm", "ci95"} <= set(scores)
        assert (len(scores["per_seed"]), len(scores["ci95"])) == (2, 2)
    assert summary["evaluation"]["episodes"] == 3
    assert set(summary["seconds"]) == {"compile", "run"}
    np.testing.assert_allclose(summary["steps_per_second"], 2 * steps / summary["seconds"]["run"])
    assert summary["versions"] == results.versions()


def test_every_array_of_metrics_leads_with_seeds_and_agrees_with_the_summary(left):
    name, out = left
    found = results.load(out)
    assert isinstance(found, results.Result)
    metrics, summary = found.metrics, found.summary
    assert {array.shape[0] for array in metrics.values()} == {2}
    steps = {"q_learning": 400, "dqn": 200}[name]
    assert metrics["environment_steps"][0, -1] == steps
    np.testing.assert_array_equal(metrics["evaluation_steps"], [list(range(100, steps + 1, 100))] * 2)
    assert metrics["evaluation_return"].shape == (2, steps // 100, 3)
    per_seed = metrics["evaluation_return"][:, -1].mean(1)
    np.testing.assert_allclose(summary["evaluation"]["per_seed"], per_seed, rtol=1e-6)
    np.testing.assert_allclose(summary["evaluation"]["mean"], per_seed.mean(), rtol=1e-6)


def test_the_time_limit_of_the_environment_is_that_of_the_command_line(left):
    name, out = left
    found = results.load(out)
    assert found.settings["env_params"]["max_steps_in_episode"] == 7
    ended = found.metrics["episodes"] > 0
    assert ended.any()
    assert found.metrics["episode_length"][ended].max() == 7
    if name == "dqn":  # a reward of 1 a step
        assert found.metrics["evaluation_return"].max() <= 7


def test_the_training_return_is_that_of_the_episodes_of_the_last_tenth(tmp_path):
    found = run("q_learning", tmp_path / "run", "--seeds", "2", "--eval-every", "0", "--log-every", "20", *LUCK)
    episodes, returns = found.metrics["episodes"][:, -2:], found.metrics["episode_return"][:, -2:]
    assert (episodes > 0).all()
    assert (np.ptp(returns, axis=1) > 0).all()  # or one row would do for both
    expected = (returns * episodes).sum(1) / episodes.sum(1)
    np.testing.assert_allclose(found.summary["episode_return"]["per_seed"], expected, rtol=1e-6)
    np.testing.assert_allclose(found.summary["episode_return"]["mean"], expected.mean(), rtol=1e-6)
    assert found.summary["evaluation"] is None  # none was asked for
    assert "evaluation_return" not in found.metrics


def test_a_seed_without_a_finished_episode_has_no_return(tmp_path):
    found = run("q_learning", tmp_path / "run", "--total-steps", "10", "--eval-every", "0")
    assert found.metrics["episodes"].sum() == 0
    assert found.summary["episode_return"]["per_seed"] == [None]
    assert found.summary["episode_return"]["mean"] is None


@pytest.mark.parametrize("left", ["q_learning"], indirect=True)
def test_a_run_repeats_number_for_number(left, tmp_path):
    name, out = left
    first = results.load(out).metrics
    again = run(name, tmp_path / "again", "--seeds", "2", "--eval-every", "100", "--seed", "3", *SHORT).metrics
    assert set(first) == set(again)
    for key in set(first) - {"seconds"}:
        np.testing.assert_array_equal(first[key], again[key])


def test_sarsa_and_flags_of_environment_and_hypers_reach_the_run(tmp_path):
    flags = ["--hypers.learning-rate", "0.25", "--env-params.step-reward", "-2", *SHORT]
    found = run("sarsa", tmp_path / "run", *flags, "--eval-every", "0")
    assert found.summary["hypers"]["learning_rate"] == 0.25
    assert found.settings["hypers"]["learning_rate"] == 0.25
    assert found.settings["env_params"] == {"step_reward": -2, "max_steps_in_episode": 7, "cliff_reward": -100}
    ended = found.metrics["episodes"] > 0
    assert ended.any()
    assert found.metrics["episode_length"][ended].max() == 7
    assert (found.metrics["episode_return"][ended] <= -2 * found.metrics["episode_length"][ended]).all()


@pytest.mark.parametrize(
    "flags",
    [["--no-such-flag", "3"], ["--total-steps", "many"], ["--env-params.gravity", "3"], ["--hypers.speed", "1"]],
)
def test_a_flag_that_is_not_there_ends_with_status_2(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["q_learning.py", "--out", str(tmp_path / "run"), *flags])
    script = load("q_learning")
    with pytest.raises(SystemExit) as end:
        cli.start(script.main, script.Settings)
    assert end.value.code == 2
    assert flags[0].rsplit(".")[-1].lstrip("-") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_flags_of_the_environment_named_are_shown_in_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(load("dqn").Settings, ["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "--env-params.gravity" in shown
    assert "--hypers.learning-rate" in shown
    assert "environment steps before the first update" in shown


def test_unknown_parameters_given_from_python_are_named(tmp_path):
    script = load("q_learning")
    settings = script.Settings(env_params={"gravity": 3.0}, out=tmp_path / "run")
    with pytest.raises(cli.BadInput, match=r"env_params has gravity; CliffWalking-purerl takes cliff_reward"):
        script.main(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_script_runs_as_it_stands(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "experiments/q_learning.py", "--total-steps", "2000", "--out", out]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == FILES
    assert "greedy return, 20 episodes a seed" in done.stdout
    assert str(out) in done.stdout.splitlines()[-1]
    assert results.load(out).summary["total_steps"] == 2000


@pytest.mark.thorough
def test_dqn_s_options_reach_the_agent(tmp_path):
    flags = ["--dueling", "--no-double", "--n-step", "2", "--explore", "boltzmann", "--schedule", "exponential"]
    found = run("dqn", tmp_path / "run", "--eval-every", "0", *flags, "--hypers.target-rate", "0.5")
    settings = load("dqn").Settings(**{"dueling": True, "double": False, "n_step": 2, "hidden": (8,)})
    assert {name: found.settings[name] for name in ("dueling", "double", "n_step", "explore", "schedule")} == {
        **{name: getattr(settings, name) for name in ("dueling", "double", "n_step")},
        "explore": "boltzmann",
        "schedule": "exponential",
    }
    assert found.settings["hypers"]["target_rate"] == 0.5
    assert np.isfinite(found.metrics["loss"]).all()


@pytest.mark.thorough
def test_pictures_are_kept_as_bool_through_the_whole_run(tmp_path):
    script = load("dqn_minatar")
    small = ["--total-steps", "64", "--learning-starts", "32", "--capacity", "160", "--batch-size", "4"]
    tiny = ["--filters", "2", "--hidden", "4", "--eval-every", "0"]
    script.main(cli.parse(script.Settings, [*small, *tiny, "--out", str(tmp_path / "run")]))
    found = results.load(tmp_path / "run")
    assert found.settings["observation_dtype"] == "bool"
    assert found.settings["env"] == "Breakout-MinAtar"
    assert np.isfinite(found.metrics["loss"]).all()


@pytest.fixture(scope="module")
def cliff(tmp_path_factory):
    out = tmp_path_factory.mktemp("cliff") / "run"
    script = load("cliff_walking")
    script.main(cli.parse(script.Settings, ["--seeds", "3", "--episodes", "120", "--out", str(out)]))
    return script, results.load(out)


def test_the_cliff_leaves_its_picture_and_every_episode_s_return(cliff):
    _, found = cliff
    assert {path.name for path in found.directory.iterdir()} == FILES - {"learning_curve.png", "policy.zip"} | {
        "cliff_walking.png"
    }
    assert (found.directory / "cliff_walking.png").read_bytes().startswith(b"\x89PNG")
    assert {array.shape for array in found.metrics.values()} == {(3, 120)}
    for name, summary in found.summary["agents"].items():
        late = found.metrics[f"episode_return of {name}"][:, -100:].mean(axis=1)
        np.testing.assert_allclose(summary["episode_return"], late, rtol=1e-6)
        assert summary["mean"] == pytest.approx(late.mean(), rel=1e-6)
        assert summary["mean_ci95"][0] <= late.mean() <= summary["mean_ci95"][1]
        assert sum(summary["greedy_path_steps"].values()) + summary["greedy_path_in_circles"] == 3


def test_a_greedy_path_that_does_not_arrive_walks_in_circles(cliff):
    script, _ = cliff
    goal, longest = script.GOAL, script.LONGEST
    arrives = np.array([36, 24, *range(25, 36), *[goal] * (longest - 12)])
    circles = np.array([36, 24] * longest)[: longest + 1]
    returns = np.array([[-13.0] * 120, [-113.0] * 120, [np.nan] * 120])
    diverged = np.array([False, False, True])
    summary = script.describe(script.Trained(returns, np.stack([arrives, circles, arrives]), diverged))
    assert summary["greedy_path_steps"] == {"13": 1}
    assert summary["greedy_path_in_circles"] == 1
    assert summary["mean"] == -63
    assert summary["diverged"].tolist() == [2]
    line = script.sentence({**summary, "mean_ci95": (-113.0, -13.0)})
    assert line == " -63.00 [-113.00, -13.00]   greedy path: 13 steps x 1, in circles x 1, diverged x 1"


def test_on_the_cliff_every_seed_learns_for_its_episodes_and_not_a_step_longer():
    script = load("cliff_walking")
    env, settings = script.envs.make("CliffWalking-purerl", 1), script.Settings(seeds=5, episodes=10)
    agent = script.AGENTS["SARSA"](env.spec)
    run = script.train(jax.random.split(jax.random.key(0), 5), settings, env, agent, "SARSA")
    np.testing.assert_array_equal(run.table.count, np.full(5, 10))
    steps = np.asarray(run.table.episode_length).sum(axis=1)
    np.testing.assert_array_equal(run.iteration, steps)
    assert len(set(steps.tolist())) > 1


def test_divergence_on_the_cliff_is_told(tmp_path, capsys, monkeypatch):
    script = load("cliff_walking")
    monkeypatch.setattr(script, "AGENTS", {"Q-learning": script.AGENTS["Q-learning"]})
    flags = ["--seeds", "2", "--episodes", "20", "--hypers.learning-rate", "3", "--out", str(tmp_path / "run")]
    script.main(cli.parse(script.Settings, flags))
    assert "diverged x 2" in capsys.readouterr().out
    agents = results.load(tmp_path / "run").summary["agents"]
    assert agents["Q-learning"]["diverged"] == [0, 1]
    assert agents["Q-learning"]["mean"] is None


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (results.Damaged("a.npz is cut short"), 2, "a.npz is cut short"),
        (MemoryError("2 runs keep 9 GiB"), 2, "2 runs keep 9 GiB"),
        (MemoryError(), 2, "there is not enough memory"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (sqlite3.OperationalError("database or disk is full"), 1, "database or disk is full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_fails_on_the_way_ends_in_one_sentence(error, status, sentence, monkeypatch, capsys):
    def main(settings):
        raise error

    monkeypatch.setattr(sys, "argv", ["cliff_walking.py"])
    with pytest.raises(SystemExit) as end:
        cli.start(main, load("cliff_walking").Settings)
    assert end.value.code == status
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_ctrl_c_ends_in_one_sentence(monkeypatch, capsys):
    def main(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["cliff_walking.py"])
    with pytest.raises(SystemExit) as end:
        cli.start(main, load("cliff_walking").Settings)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
