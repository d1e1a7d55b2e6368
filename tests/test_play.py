"""Playing what was saved: the returns that the agent itself would get, an episode drawn, and sentences otherwise."""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from purerl import cli, driver, envs, evaluate, export, loop, play
from purerl.agents import q_learning
from purerl.base import cast_hypers

EPISODES, STEPS = 5, 200


def saved(name, folder, *, steps=4_000, seeds=2, env_params=None):
    """Q-learning's policies in a run directory; returns what made them."""
    env = envs.make(name, 1)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers(learning_rate=0.5)
    phases = [loop.Phase(agent, steps)]
    outcome = driver.drive(driver.seed_keys(0, seeds), phases, env, hypers, log_every=steps, env_params=env_params)
    export.save_policy(
        folder / export.POLICY, agent, outcome.runs.agent, env, hypers, env_params=env_params, runs=seeds
    )
    return agent, outcome.runs.agent, cast_hypers(hypers)


@pytest.fixture(scope="module")
def cliff(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cliff")
    env = envs.make("CliffWalking-purerl", 1)
    params = dataclasses.replace(env.params, step_reward=np.float32(-2.0))
    return folder, params, *saved("CliffWalking-purerl", folder, env_params=params)


def test_returns_are_those_of_the_agent_itself_and_an_episode_is_drawn(cliff, capsys):
    folder, params, agent, states, hypers = cliff
    settings = play.Settings(run_dir=folder, episodes=EPISODES, max_steps=STEPS, seed=3)
    played = play.main(settings)
    env = envs.make("CliffWalking-purerl", EPISODES)

    @jax.jit
    def judged(state):
        key = jax.random.key(3)
        return evaluate.evaluate(key, agent, state, env, hypers, max_steps=STEPS, env_params=params)

    for run in range(2):
        expected = judged(jax.tree.map(lambda leaf, run=run: leaf[run], states))
        assert np.array_equal(played.episode_return[run], expected.episode_return)
        assert np.array_equal(played.episode_length[run], expected.episode_length)
        assert np.array_equal(played.finished[run], expected.finished)
    assert played.runs == [0, 1]
    assert not played.diverged.any()
    # Thirteen steps along the cliff, each at the price that it had in training.
    assert played.episode_return[0].tolist() == [-26.0] * EPISODES
    assert played.gif == folder / "episode.gif"
    with Image.open(played.gif) as picture:
        assert picture.n_frames == 14
    said = capsys.readouterr().out
    assert "run 1: mean return " in said
    assert "2 runs: mean return " in said
    assert "episode.gif: an episode of run 0, return -26.00 in 13 steps" in said


@pytest.mark.thorough
def test_one_run_of_a_file_elsewhere_cut_off(cliff, tmp_path, capsys):
    settings = play.Settings(
        run_dir=cliff[0] / export.POLICY, episodes=EPISODES, run=1, max_steps=5, gif=str(tmp_path / "new" / "film.gif")
    )
    played = play.main(settings)
    assert played.runs == [1]
    assert played.episode_return.tolist() == [[-10.0] * EPISODES]
    assert not played.finished.any()
    with Image.open(tmp_path / "new" / "film.gif") as picture:
        assert picture.n_frames == 6
    said = capsys.readouterr().out
    assert "5 of 5 episodes were cut off after 5 steps" in said
    assert "an episode of run 1 (its beginning), return -10.00 in 5 steps" in said


def test_what_cannot_be_drawn_is_played_all_the_same(tmp_path, capsys):
    env = envs.make("Gambler-purerl", 1)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    export.save_policy(tmp_path / export.POLICY, agent, agent.init(jax.random.key(0), cast_hypers(hypers)), env, hypers)
    played = play.main(play.Settings(run_dir=tmp_path, episodes=2, max_steps=9))
    assert played.gif is None
    assert "no GIF: Gambler-purerl cannot be drawn" in capsys.readouterr().out


def test_a_run_that_diverged_is_named_and_left_out(tmp_path, capsys):
    env = envs.make("CornerGridworld-purerl", 1)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    state = agent.init(jax.random.key(0), cast_hypers(hypers))
    both = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf), np.full_like(leaf, np.nan)]), state)
    export.save_policy(tmp_path / export.POLICY, agent, both, env, hypers, runs=2)
    played = play.main(play.Settings(run_dir=tmp_path, episodes=2, max_steps=9, gif="none"))
    assert played.diverged.tolist() == [False, True]
    said = capsys.readouterr().out
    assert "DIVERGED" in said
    assert "1 run: mean return" in said
    assert not (tmp_path / "episode.gif").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"run": 2}, "run is 2; .* holds 2 runs"),
    ],
)
def test_bad_settings(cliff, change, words):
    with pytest.raises(cli.BadInput, match=words):
        play.main(play.Settings(run_dir=cliff[0], **change))


def test_an_environment_that_is_not_what_it_was(tmp_path):
    env = envs.make(envs.WindyGridworld(kings_moves=True), 1)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    state = agent.init(jax.random.key(0), cast_hypers(hypers))
    export.save_policy(tmp_path / export.POLICY, agent, state, env, hypers)
    words = r"has actions Discrete\(4\); the policy was saved for int32 of shape \(\) below 8"
    with pytest.raises(cli.BadInput, match=words):
        play.main(play.Settings(run_dir=tmp_path))


def test_the_command_line_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_keep_programs", lambda: None)
    monkeypatch.setattr(sys, "argv", ["play", str(tmp_path), "--episodes", "3"])
    with pytest.raises(SystemExit) as ended:
        cli.start(play.main, play.Settings)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / export.POLICY} is not there, or no file; it takes a purerl policy\n"
