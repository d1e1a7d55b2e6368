import subprocess
import sys

import numpy as np
import pytest

from purerl import plots, scores

STEPS = np.linspace(25_000, 500_000, 20)
RETURNS = np.arange(20.0) + np.random.default_rng(0).normal(size=(4, 20))


def draw(steps=STEPS, returns=RETURNS, evaluation=None):
    return plots._figure(steps, returns, title="t", ylabel="episode return", evaluation=evaluation)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def test_a_png_is_saved_with_its_folder(tmp_path):
    evaluation = (STEPS[::5], RETURNS[:, ::5] + 1)
    path = plots.learning_curve(tmp_path / "new" / "curve.png", STEPS, RETURNS, title="DQN", evaluation=evaluation)
    assert path == tmp_path / "new" / "curve.png"
    assert png_size(path) == (1050, 630)  # 7 x 4.2 inches at 150 dots


def test_axes_are_labelled_and_ticks_readable():
    figure = draw()
    axes = figure.axes[0]
    figure.canvas.draw()
    left, right = axes.get_xlim()
    ticks = {text.get_position()[0]: text.get_text() for text in axes.get_xticklabels()}
    shown = [text for step, text in ticks.items() if left <= step <= right]
    assert shown == ["0", "100k", "200k", "300k", "400k", "500k"]
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "episode return"
    assert axes.get_title(loc="left") == "t"


def test_mean_and_band():
    figure = draw()
    assert labels(figure) == [
        "each seed",
        "mean of 4 seeds",
        "95 % bootstrap interval of the mean",
    ]
    mean = lines(figure)["mean of 4 seeds"]
    np.testing.assert_allclose(mean.get_ydata(), RETURNS.mean(axis=0))
    (band,) = figure.axes[0].collections
    low, high = scores.bootstrap_interval(RETURNS[:, 0], np.mean, resamples=1000)
    first = band.get_paths()[0].vertices
    first = first[first[:, 0] == STEPS[0], 1]
    assert (first.min(), first.max()) == pytest.approx((low, high))


def test_rows_without_an_episode_are_left_out(tmp_path):
    returns = RETURNS.copy()
    returns[:, 0] = np.nan
    returns[1:, 3] = np.nan
    returns[1, 5] = np.inf
    mean = lines(draw(returns=returns))["mean of 4 seeds"]
    np.testing.assert_array_equal(mean.get_xdata(), STEPS[1:])
    assert mean.get_ydata()[2] == returns[0, 3]
    assert mean.get_ydata()[4] == pytest.approx(np.delete(returns[:, 5], 1).mean())
    nothing = np.full((2, 20), np.nan)
    png_size(plots.learning_curve(tmp_path / "nothing.png", STEPS, nothing, title="none"))


def test_one_seed_has_no_band_and_one_row_a_marker():
    figure = draw(returns=RETURNS[:1], evaluation=(STEPS[:2], RETURNS[:1, :2]))
    assert labels(figure) == ["one seed", "evaluation"]
    assert not figure.axes[0].collections
    assert lines(draw([10], [[3.0]]))["one seed"].get_marker() == "o"


def test_many_seeds_are_not_drawn_one_by_one():
    ten, eleven = (np.tile(STEPS, (seeds, 1)) for seeds in (10, 11))
    assert len(draw(returns=ten).axes[0].get_lines()) == 11
    assert len(draw(returns=eleven).axes[0].get_lines()) == 1


def test_evaluation_has_error_bars():
    values = np.array([[1.0, 2.0], [3.0, np.nan], [9.0, np.nan]])
    figure = draw(evaluation=([100, 200], values))
    assert labels(figure)[-1] == "evaluation, mean and 95 % interval"
    (container,) = figure.axes[0].containers
    np.testing.assert_allclose(container.lines[0].get_ydata(), [13 / 3, 2.0])
    first, second = container.lines[2][0].get_segments()
    interval = scores.bootstrap_interval([1, 3, 9], np.mean, resamples=1000)
    assert tuple(first[:, 1]) == pytest.approx(interval)
    np.testing.assert_allclose(second[:, 1], [2.0, 2.0])


@pytest.mark.parametrize(
    ("returns", "evaluation", "message"),
    [
        (RETURNS[0], None, r"returns has shape \(20,\) over .*; it takes \[seeds, rows\]"),
        (RETURNS[:, 1:], None, r"returns has shape \(4, 19\) over steps of shape \(20,\)"),
        (RETURNS[:0], None, r"returns has shape \(0, 20\)"),
        (RETURNS, ([1], [[1.0, 2.0]]), r"evaluation has shape .*; it takes \[seeds, points\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, returns, evaluation, message):
    with pytest.raises(ValueError, match=message):
        plots.learning_curve(tmp_path / "a.png", STEPS, returns, title="", evaluation=evaluation)
    assert not (tmp_path / "a.png").exists()


def test_no_global_state_of_matplotlib_is_touched(tmp_path):
    script = f"""
import sys
from purerl import plots
assert "matplotlib" not in sys.modules
plots.learning_curve({str(tmp_path / "a.png")!r}, [1, 2], [[1.0, 2.0]], title="t")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- comparisons and paths ------------------------------------------------------------------------------------------


def compare(returns, x=STEPS):
    figure = plots.new_figure(4.0, 3.0)
    axes = figure.add_subplot()
    plots.comparison(axes, x, returns, xlabel="episode", ylabel="return")
    return axes


def test_a_comparison_draws_every_mean_with_its_interval_in_a_colour_of_its_own():
    axes = compare({"one": RETURNS, "other": RETURNS + 5})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other"]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(drawn["one"].get_ydata(), RETURNS.mean(axis=0))
    np.testing.assert_allclose(drawn["other"].get_ydata(), RETURNS.mean(axis=0) + 5)
    assert drawn["one"].get_color() != drawn["other"].get_color()
    low, high = scores.bootstrap_interval(RETURNS[:, 0], np.mean, resamples=1000)
    first = axes.collections[0].get_paths()[0].vertices
    first = first[first[:, 0] == STEPS[0], 1]
    assert (first.min(), first.max()) == pytest.approx((low, high))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("episode", "return")


def test_a_comparison_names_the_curve_that_does_not_fit():
    with pytest.raises(ValueError, match=r"returns of other has shape \(4, 19\)"):
        compare({"one": RETURNS, "other": RETURNS[:, 1:]})


def draw_paths(paths, **more):
    axes = plots.new_figure(4.0, 3.0).add_subplot()
    plots.grid_paths(axes, (2, 3), paths, color="black", **more)
    return axes


def test_a_move_is_as_wide_as_the_share_of_paths_that_make_it():
    # Cells 0 1 2 above 3 4 5. Both go from 3 to 0; one goes on to 1, the other stays; one passes 0 -> 1 twice.
    axes = draw_paths([[3, 0, 1, 0, 1], [3, 0]])
    widths = {(tuple(line.get_xdata()), tuple(line.get_ydata())): line.get_linewidth() for line in axes.get_lines()}
    whole = widths[(0, 0), (1, 0)]
    assert widths == {((0, 0), (1, 0)): whole, ((0, 1), (0, 0)): whole / 2, ((1, 0), (0, 0)): whole / 2}
    low, high = axes.get_ylim()
    assert low > high, "row 0 is on top"


def test_cells_are_shaded_and_labelled_where_they_are():
    axes = draw_paths([[3, 0]], shaded=[4], labels={3: "S", 5: "G"})
    faces = [patch.get_facecolor() for patch in axes.patches]
    assert len(faces) == 6
    assert len(set(faces)) == 2
    odd = [index for index, face in enumerate(faces) if faces.count(face) == 1]
    assert odd == [4]
    assert axes.patches[4].get_xy() == (0.5, 0.5)
    assert {text.get_text(): text.get_position() for text in axes.texts} == {"S": (0, 1), "G": (2, 1)}


@pytest.mark.parametrize("wrong", [{"paths": [[0, 6]]}, {"paths": [[-1]]}, {"paths": [], "shaded": [6]}])
def test_cells_beyond_the_grid_are_refused(wrong):
    with pytest.raises(ValueError, match=r"a grid of \(2, 3\) has 0 to 5"):
        draw_paths(**wrong)


def test_a_figure_is_saved_with_its_folder(tmp_path):
    path = plots.save(plots.new_figure(4.0, 3.0), tmp_path / "new" / "figure.png")
    assert png_size(path) == (600, 450)
