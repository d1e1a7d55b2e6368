"""Pictures of results; matplotlib is imported late, being slow, and its global state left alone."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from purerl import scores
from purerl.checks import is_count, make_folder, path_of, require_kind, require_number, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, POINTS, TEXT, GRID = "#2b6cb0", "#c05621", "#2d3748", "#e2e8f0"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MOST_LINES = 10  # more seeds than this would hide the mean


def learning_curve(
    path: str | os.PathLike[str],
    steps: ArrayLike,
    returns: ArrayLike,
    *,
    title: str,
    ylabel: str = "episode return",
    evaluation: tuple[ArrayLike, ArrayLike] | None = None,
) -> Path:
    """Saves a PNG of returns [seeds, rows] over environment steps [rows], and returns its path.

    The line is the mean over seeds and the band its 95 % bootstrap interval; up to ten seeds
    are drawn thin. NaN (a row in which no episode of a seed ended) is left out, row by row.
    `evaluation` is (steps [points], values [seeds, points]), drawn as markers with 95 %
    intervals. Folders are made. Raises ValueError where shapes do not fit.
    """
    target = path_of("path", path)
    figure = _figure(steps, returns, title=title, ylabel=ylabel, evaluation=evaluation)
    return save(figure, target)


def comparison(axes: Axes, x: ArrayLike, returns: Mapping[str, ArrayLike], *, xlabel: str, ylabel: str) -> None:
    """Draws several learning curves into one frame: name -> returns [seeds, points] over x [points].

    Each is the mean over seeds with its 95 % bootstrap interval, in a colour of its own (of Okabe
    and Ito, which the colour-blind tell apart). Raises ValueError where shapes do not fit.
    """
    _require_axes(axes)
    require_kind("returns", returns, Mapping, wanted="a dict: name -> returns [seeds, points]")
    drawn = {}
    for name, values in returns.items():
        points, values = _checked(f"returns of {name}", "points", x, values)
        drawn[name] = points, *_mean_and_interval(values)
    curves(axes, drawn, xlabel=xlabel, ylabel=ylabel)


def curves(
    axes: Axes, drawn: Mapping[str, tuple[ArrayLike, ...]], *, xlabel: str, ylabel: str, legend: Any = "best"
) -> None:
    """Draws several curves into one frame: name -> (x, mean, low, high), each [points], low to high being a band.

    The colours are COLORS, in order and again from the first; `legend` says where it stands, in matplotlib's words, and
    None is none. Raises ValueError where they are not of one length.
    """
    _require_axes(axes)
    require_kind("drawn", drawn, Mapping, wanted="a dict: name -> (x, mean, low, high)")
    for name, parts in drawn.items():
        shapes = [np.shape(np.atleast_1d(part)) for part in parts]
        if len(shapes) != 4 or len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(f"drawn has {name} of shapes {shapes}; it takes x, mean, low and high, each [points]")
    for (name, (x, mean, low, high)), color in zip(drawn.items(), itertools.cycle(COLORS)):
        marker = "o" if len(np.atleast_1d(x)) == 1 else None
        axes.plot(x, mean, color=color, linewidth=1.8, marker=marker, label=name, zorder=3)
        axes.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    axes.set_xlabel(xlabel, color=TEXT)
    axes.set_ylabel(ylabel, color=TEXT)
    columns = 2 if len(drawn) > 4 else 1
    if legend is not None:
        axes.legend(fontsize=9, labelcolor=TEXT, loc=legend, framealpha=0.85, edgecolor="none", ncols=columns)
    _style_frame(axes)


def grid_paths(
    axes: Axes,
    shape: tuple[int, int],
    paths: Iterable[ArrayLike],
    *,
    color: str,
    shaded: Iterable[int] = (),
    labels: Mapping[int, str] | None = None,
) -> None:
    """Draws paths through a grid of (rows, columns), each an array of cells, row * columns + column.

    A move is as wide as the share of paths that make it (from a tenth on). `shaded` cells are grey; `labels` are
    written into cells. Raises ValueError for a cell beyond the grid.
    """
    from matplotlib.patches import Rectangle

    _require_axes(axes)
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(map(is_count, shape))):
        raise ValueError(f"shape is {shown(shape)}; it takes (rows, columns), each at least 1")
    rows, columns = shape
    walks = [np.asarray(path, np.int64) for path in paths]
    for cells in (*walks, np.fromiter(shaded, np.int64)):
        if cells.size and not (cells.min() >= 0 and cells.max() < rows * columns):
            raise ValueError(
                f"a path or shaded cell is {cells.tolist()}; a grid of {shape} has 0 to {rows * columns - 1}"
            )
    beyond = [cell for cell in labels or {} if not 0 <= cell < rows * columns]
    if beyond:
        raise ValueError(f"labels has cell {beyond[0]}; a grid of {shape} has 0 to {rows * columns - 1}")
    for cell in range(rows * columns):
        place = cell % columns - 0.5, cell // columns - 0.5
        face = "#cbd5e0" if cell in set(shaded) else "white"
        axes.add_patch(Rectangle(place, 1, 1, facecolor=face, edgecolor=GRID, linewidth=0.8))
    moves = Counter(move for cells in walks for move in set(itertools.pairwise(cells.tolist())))
    for (start, end), count in moves.items():
        ends = [start % columns, end % columns], [start // columns, end // columns]
        axes.plot(*ends, color=color, linewidth=max(4.0 * count / len(walks), 0.4), solid_capstyle="round", zorder=3)
    for cell, text in (labels or {}).items():
        style = {"ha": "center", "va": "center", "fontsize": 8, "fontweight": "bold", "color": TEXT, "zorder": 4}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(cell % columns, cell // columns, text, **style)
    axes.set(xlim=(-0.52, columns - 0.48), ylim=(rows - 0.48, -0.52), aspect="equal")
    axes.axis("off")


def sensitivity(axes: Axes, column: ArrayLike, scores_of: ArrayLike, *, xlabel: str, ylabel: str) -> None:
    """Draws scores [points, seeds] against the value that each point has on one axis [points]: means with intervals.

    The points that share a value are pooled. Positive values that span more than a factor of twenty go on a
    logarithmic axis. Raises ValueError where shapes do not fit.
    """
    _require_axes(axes)
    x, y = _numbers("column", column), _numbers("scores_of", scores_of)
    if x.ndim != 1 or y.ndim != 2 or len(x) != len(y) or not y.size:
        raise ValueError(f"scores_of has shape {y.shape} for a column of shape {x.shape}; it takes [points, seeds]")
    values = np.unique(x)
    pooled = np.full((max(int((x == value).sum()) for value in values) * y.shape[1], len(values)), np.nan)
    for place, value in enumerate(values):
        here = y[x == value].ravel()
        pooled[: len(here), place] = here
    mean, low, high = _mean_and_interval(pooled)
    curves(axes, {xlabel: (values, mean, low, high)}, xlabel=xlabel, ylabel=ylabel, legend=None)
    axes.plot(x.repeat(y.shape[1]), y.ravel(), ".", color=TEXT, alpha=0.25, markersize=4)
    _scale(axes, values)


def dots(axes: Axes, x: ArrayLike, y: ArrayLike, *, xlabel: str, ylabel: str, best: bool = False) -> None:
    """Draws a dot for each pair that is finite, and with `best` the highest of those up to each x as a line.

    Axes are logarithmic as in `sensitivity`. Raises ValueError where shapes do not fit.
    """
    _require_axes(axes)
    across, up = _numbers("x", x), _numbers("y", y)
    if across.ndim != 1 or across.shape != up.shape:
        raise ValueError(f"y has shape {up.shape} over x of shape {across.shape}; they take [points] both")
    kept = np.isfinite(up)
    across, up = across[kept], up[kept]
    axes.plot(across, up, "o", color=LINE, alpha=0.6, markersize=4)
    if best:
        axes.step(across, np.maximum.accumulate(up), where="post", color=POINTS, label="best so far")
        axes.legend(frameon=False, labelcolor=TEXT)
    elif across.size:
        _scale(axes, across)
    axes.set_xlabel(xlabel, color=TEXT)
    axes.set_ylabel(ylabel, color=TEXT)
    _style_frame(axes)


def heat_map(axes: Axes, labels: Mapping[str, ArrayLike], values: ArrayLike) -> None:
    """Draws a value for each point of two axes, name -> [points] each, as coloured cells with the numbers in them.

    Points that share a cell are averaged; a cell without one, or whose values are not finite, stays empty. Raises
    ValueError for other than two axes, and where shapes do not fit.
    """
    _require_axes(axes)
    require_kind("labels", labels, Mapping, wanted="a dict of two axes: name -> values [points]")
    lengths = {name: np.shape(column) for name, column in labels.items()}
    if len(labels) != 2 or set(lengths.values()) != {np.shape(values)} or np.ndim(values) != 1:
        raise ValueError(f"labels has {lengths} for values of shape {np.shape(values)}; it takes two axes of [points]")
    (vertical, rows), (horizontal, columns) = ((name, np.asarray(column)) for name, column in labels.items())
    up, across, found = np.unique(rows), np.unique(columns), _numbers("values", values)
    table = np.full((len(up), len(across)), np.nan)
    for row, column in itertools.product(range(len(up)), range(len(across))):
        here = found[(rows == up[row]) & (columns == across[column]) & np.isfinite(found)]
        table[row, column] = here.mean() if here.size else np.nan
    axes.imshow(table, origin="lower", aspect="auto", cmap="cividis")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2 if np.isfinite(table).any() else 0.0
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(across)), [f"{value:.3g}" for value in across])
    axes.set_yticks(range(len(up)), [f"{value:.3g}" for value in up])
    axes.set_xlabel(horizontal, color=TEXT)
    axes.set_ylabel(vertical, color=TEXT)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Saves a figure as a PNG and returns its path; folders are made."""
    target = path_of("path", path)
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure is {shown(figure)}; it takes a figure of matplotlib, as new_figure returns")
    if target.is_dir():
        raise IsADirectoryError(f"path is {target}, which is a folder; it takes the path of a picture")
    make_folder(target.parent, name="path")
    figure.savefig(target, format="png", dpi=150)
    return target


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out so that nothing overlaps, apart from matplotlib's global state."""
    require_number("width", width, least=0.1)
    require_number("height", height, least=0.1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _figure(
    steps: ArrayLike,
    returns: ArrayLike,
    *,
    title: str,
    ylabel: str,
    evaluation: tuple[ArrayLike, ArrayLike] | None,
) -> Figure:
    curve = _checked("returns", "rows", steps, returns)
    if evaluation is not None and not (isinstance(evaluation, tuple) and len(evaluation) == 2):
        raise ValueError(f"evaluation is {shown(evaluation)}; it takes a pair, (steps, values)")
    points = None if evaluation is None else _checked("evaluation", "points", *evaluation)
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    _draw_returns(axes, *curve)
    if points is not None:
        _draw_evaluation(axes, *points)
    last = max(curve[0].max(initial=1.0), 0.0 if points is None else points[0].max(initial=0.0))
    _style(axes, title, ylabel, (-0.015 * last, 1.03 * last))
    return figure


def _draw_returns(axes: Axes, steps: np.ndarray, returns: np.ndarray) -> None:
    seeds = returns.shape[0]
    if 1 < seeds <= MOST_LINES:
        for index, row in enumerate(returns):
            seen = np.isfinite(row)
            label = "each seed" if index == 0 else None
            axes.plot(steps[seen], row[seen], color=LINE, alpha=0.3, linewidth=0.7, label=label)
    mean, low, high = _mean_and_interval(returns)
    seen = np.isfinite(mean)
    # Rows without an episode are bridged: where episodes are long, a line broken at every NaN would
    # show nothing.
    label = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    marker = "o" if seen.sum() == 1 else None
    style = {"color": LINE, "linewidth": 2.0, "zorder": 3}
    axes.plot(steps[seen], mean[seen], label=label, marker=marker, **style)
    known = np.isfinite(low)
    if known.any():
        label = "95 % bootstrap interval of the mean"
        axes.fill_between(steps[known], low[known], high[known], color=LINE, alpha=0.2, linewidth=0, label=label)


def _draw_evaluation(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    mean, low, high = _mean_and_interval(values)
    seen = np.isfinite(mean)
    errors = np.nan_to_num(np.stack([mean - low, high - mean]))[:, seen]
    several = bool(np.isfinite(low).any())
    axes.errorbar(
        steps[seen],
        mean[seen],
        yerr=errors if several else None,
        fmt="o",
        color=POINTS,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.3,
        capsize=2.5,
        label="evaluation, mean and 95 % interval" if several else "evaluation",
        zorder=4,
    )


def _style(axes: Axes, title: str, ylabel: str, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=TEXT, pad=10)
    axes.set_xlabel("environment steps", color=TEXT)
    axes.set_ylabel(ylabel, color=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(*limits)
    _style_frame(axes)
    # Below the axes, where it can cover nothing.
    legend = axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        text.set_color(TEXT)
        if text.get_text() == "each seed" and handle is not None:
            handle.set_alpha(0.6)


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Makes the horizontal axis logarithmic for positive values that span more than a factor of twenty."""
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")


def _style_frame(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#a0aec0")
    axes.tick_params(color="#a0aec0", labelcolor=TEXT)


def _mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # [seeds, rows] -> three of [rows]; NaN where no seed (mean) or only one (interval) has a value.
    mean, low, high = (np.full(values.shape[1], np.nan) for _ in range(3))
    for row, column in enumerate(values.T):
        kept = column[np.isfinite(column)]
        if kept.size:
            mean[row] = kept.mean()
        if kept.size > 1:
            low[row], high[row] = scores.bootstrap_interval(kept, np.mean, resamples=1000)
    return mean, low, high


def _require_axes(axes: Any) -> None:
    if not hasattr(axes, "plot"):
        raise TypeError(f"axes is {shown(axes)}; it takes matplotlib's axes, as figure.add_subplot() returns")


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {shown(values)}; it takes an array of numbers") from error


def _checked(name: str, axis: str, steps: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers("steps", steps), _numbers(name, values)
    if x.ndim != 1 or y.ndim != 2 or y.shape[0] == 0 or y.shape[1] != x.size:
        raise ValueError(
            f"{name} has shape {y.shape} over steps of shape {x.shape}; it takes [seeds, {axis}] over [{axis}]."
        )
    return x, y
