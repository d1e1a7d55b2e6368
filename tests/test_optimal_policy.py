"""The script that draws optimal policies."""

import numpy as np
import pytest
from scripts import load

from purerl import cli, envs


@pytest.mark.parametrize(
    ("env", "discount", "start"),
    [("FrozenLake-misc", 0.99, 0.542026), ("WindyGridworld-purerl", 1.0, -15.0), ("Gambler-purerl", 1.0, None)],
)
def test_it_solves_and_draws(env, discount, start, tmp_path, capsys):
    script = load("optimal_policy")
    script.main(script.Settings(env=env, discount=discount, out=tmp_path / "run"))
    names = ["metrics.npz", "optimal_policy.png", "settings.json", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert (tmp_path / "run" / "optimal_policy.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "run" / "metrics.npz") as solution:
        assert solution["policy"].shape == solution["action_value"].shape == (*solution["value"].shape, 4) or not start
        np.testing.assert_allclose(solution["policy"].sum(axis=1), 1, rtol=1e-6)
    if start is not None:
        assert f"V* of the start {start:.6f}"[:21] in capsys.readouterr().out


def test_every_optimal_action_is_an_arrow_and_cells_that_nobody_comes_to_have_none():
    script, figure = load("optimal_policy"), None
    from purerl import planning, plots

    env = envs.CliffWalking()
    mdp = envs.enumerate_mdp(env)
    figure = plots.new_figure(4.0, 3.0)
    axes = figure.add_subplot()
    script.draw_grid(axes, envs.grid_of(env), mdp, planning.value_iteration(*mdp.arrays, 1.0))
    arrows = [text for text in axes.texts if text.get_text() == ""]
    # Two for each cell of the upper rows but the last column's, one for those, the lowest row's, and the start.
    assert len(arrows) == 2 * 22 + 2 + 12 + 1
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["end"]
    assert not script.reachable(mdp)[37:47].any()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"env": "CartPole-v1"}, "'CartPole-v1' cannot be enumerated"),
        ({"env": "FrozenLak"}, "did you mean FrozenLake-misc"),
        ({"env": "JumpingGridworld-purerl", "discount": 1.0}, "no policy ever comes to a terminal state"),
        ({"discount": -1.0}, "discount is -1.0; it takes a number from 0 to 1"),
    ],
)
def test_what_it_cannot_solve_is_told_in_a_sentence(settings, sentence, tmp_path):
    script = load("optimal_policy")
    with pytest.raises(cli.BadInput, match=sentence):
        script.main(script.Settings(**settings, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
