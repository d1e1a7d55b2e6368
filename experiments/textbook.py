"""The curves of Sutton & Barto from thousands of runs, on one page, with the values that they should have.

Bandits (Figures 2.2, 2.4 and Exercise 2.5), the cliff (Example 6.6), random walks (Examples 6.2 and 7.1, Figure 12.6),
maximization bias (Figure 6.5) and the Dyna maze (Figure 8.2). Prints each value beside its reference and how many
standard errors lie between them, and saves one picture.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from purerl import cli, driver, envs, exploration, features, loop, parts, planning, plots, prediction, tables
from purerl.agents import (
    action_value_bandit,
    double_q_learning,
    dyna_q,
    expected_sarsa,
    gradient_bandit,
    n_step_td,
    prioritized_sweeping,
    q_learning,
    sarsa,
    td_lambda,
    thompson_sampling,
)
from purerl.base import Agent, cast_hypers, require_count
from purerl.envs.textbook import A
from purerl.metrics import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags."""

    runs: int = 2_000  # independent runs behind each point; a quarter of them where there are many points
    seed: int = 0  # what all keys are made of

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("runs", self.runs, least=8)
        require_count("seed", self.seed, least=0)


class Reference(NamedTuple):
    """What a curve should be, from `first` to `last` on its x axis (the mean over them)."""

    curve: str
    first: float
    last: float
    value: float
    error: float  # standard error, or half of the last digit given


class Panel(NamedTuple):
    """A frame of the page: curves, name -> (x [points], values [runs, points]), and what they should be."""

    title: str
    xlabel: str
    ylabel: str
    curves: dict[str, tuple[Any, np.ndarray]]
    references: tuple[Reference, ...] = ()
    limits: tuple[float, float] | None = None  # of the y axis
    legend: str = "best"


# --- runs -----------------------------------------------------------------------------------------------------------


def steps_of(env: envs.Env, agent: Agent, steps: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a function (keys [runs], hypers) -> (reward, whether the best arm was chosen), each [runs, steps]."""

    def update(key, state, rollout, hypers):
        state, metrics = agent.update(key, state, rollout, hypers)
        seen = {"reward": jnp.mean(rollout.steps.reward), "action": jnp.mean(jnp.float32(rollout.steps.action))}
        return state, metrics | seen

    noting = agent._replace(update=update)

    def one(key, hypers):
        def step(run, _):
            best = jnp.argmax(run.episodes.env_state.values[0])
            run, metrics = loop.advance(run, noting, env, hypers, iterations=1)
            return run, (metrics["reward"][0], metrics["action"][0] == best)

        return jax.lax.scan(step, loop.begin(key, noting, env, hypers), length=steps)[1]

    every = jax.jit(jax.vmap(one, (0, None)))
    return lambda keys, hypers: jax.device_get(every(keys, cast_hypers(hypers)))


def episodes_of(
    env: envs.Env,
    agent: Agent,
    episodes: int,
    measure: Callable[[PyTree], Array] = lambda state: jnp.float32(0.0),
    prepare: Callable[[PyTree], PyTree] = lambda state: state,
) -> Callable[..., tuple[loop.EpisodeTable, np.ndarray]]:
    """Return a function (keys [runs], hypers) -> (episodes, what `measure` makes of the agent's state after each).

    A run stops with its last episode; it begins with what `prepare` makes of the agent's first state. Both results are
    [runs, episodes].
    """

    def one(key, hypers):
        def unfinished(carry):
            return carry[0].table.count < episodes

        def step(carry):
            run, measured = carry
            further, _ = loop.advance(run, agent, env, hypers, iterations=1)
            return further, measured.at[run.table.count].set(measure(further.agent))

        run = loop.begin(key, agent, env, hypers, episode_table=episodes)
        run = dataclasses.replace(run, agent=prepare(run.agent))
        run, measured = jax.lax.while_loop(unfinished, step, (run, jnp.zeros(episodes)))
        return run.table, measured

    # One run after the other: together, all would be selected from and copied until the longest has come to its end.
    every = jax.jit(lambda keys, hypers: jax.lax.map(lambda key: one(key, hypers), keys))
    return lambda keys, hypers: jax.device_get(every(keys, cast_hypers(hypers)))


def walk(states: int, **params: float) -> tuple[envs.Env, Callable[[Any], Array]]:
    """Return a random walk, and what tells the root mean square of V's errors over its states, ends apart."""
    environment = envs.RandomWalk(states)
    env = envs.make(environment, 1)
    env = env._replace(params=dataclasses.replace(env.params, **{name: jnp.float32(params[name]) for name in params}))
    mdp = envs.enumerate_mdp(environment, env.params)
    true = planning.solve_policy(jnp.ones_like(mdp.reward), *mdp.arrays, 1.0).value[1:-1]
    return env, lambda state: jnp.sqrt(jnp.mean((state.weights[1:-1] - true) ** 2))


# --- the page -------------------------------------------------------------------------------------------------------


def testbed(keys: Key[Array, " runs"]) -> list[Panel]:
    """The 10-armed testbed: epsilon-greedy (Figure 2.2), UCB (Figure 2.4), a gradient bandit, Thompson sampling."""
    env, steps = envs.make("Bandit-purerl", 1), 1_000
    by_values = steps_of(env, action_value_bandit.action_value_bandit(env.spec), steps)
    by_ucb = steps_of(env, action_value_bandit.action_value_bandit(env.spec, explore=exploration.ucb), steps)
    by_gradient = steps_of(env, gradient_bandit.gradient_bandit(env.spec), steps)
    by_thompson = steps_of(env, thompson_sampling.thompson_sampling(env.spec), steps)
    hypers = action_value_bandit.Hypers
    found = {f"epsilon {epsilon:g}": by_values(keys, hypers(exploration=epsilon)) for epsilon in (0.0, 0.01, 0.1)}
    found["UCB, c 2"] = by_ucb(keys, hypers(exploration=2.0))
    found["gradient, alpha .1"] = by_gradient(keys, gradient_bandit.Hypers())
    found["Thompson"] = by_thompson(keys, thompson_sampling.Hypers())
    x = np.arange(1, steps + 1)
    reward = {name: (x, reward) for name, (reward, _) in found.items()}
    best = {name: (x, 100.0 * best) for name, (_, best) in found.items()}
    late = {"first": 901, "last": 1_000}
    # The references are means of 2 000 runs: as uncertain as ours, if those are as many.
    error = {name: float(per_run(*curve, 901, 1_000).std() / np.sqrt(2_000)) for name, curve in reward.items()}
    given = {"epsilon 0": 1.033, "epsilon 0.01": 1.317, "epsilon 0.1": 1.397, "UCB, c 2": 1.531}
    rewards = [Reference(name, **late, value=value, error=error[name]) for name, value in given.items()]
    spike = float(reward["UCB, c 2"][1][:, 10].std() / np.sqrt(2_000))
    rewards.append(Reference("UCB, c 2", 11, 11, 1.125, spike))
    shares = [
        Reference(name, **late, value=value, error=float(per_run(*best[name], 901, 1_000).std() / np.sqrt(2_000)))
        for name, value in {"epsilon 0": 36, "epsilon 0.01": 61, "epsilon 0.1": 81}.items()
    ]
    return [
        Panel("10-armed testbed, reward", "step", "reward", reward, tuple(rewards), (0.0, 1.65), "lower right"),
        Panel(
            "10-armed testbed, action", "step", "optimal action, %", best, tuple(shares), (0.0, 100.0), "lower right"
        ),
    ]


def drifting_testbed(keys: Key[Array, " runs"]) -> list[Panel]:
    """Exercise 2.5: where values drift, a constant rate keeps up and averages fall behind."""
    env, steps = envs.make("Bandit-purerl", 1), 10_000
    params = env.params.replace(
        value_deviation=jnp.float32(0.0), drift_deviation=jnp.float32(0.01), max_steps_in_episode=jnp.int32(steps)
    )
    play = steps_of(env._replace(params=params), action_value_bandit.action_value_bandit(env.spec), steps)
    rates = {"averages": (1.0, 1.0), "constant rate .1": (0.1, 0.0)}
    curves = {}
    for name, (rate, decay) in rates.items():
        _, best = play(keys, action_value_bandit.Hypers(learning_rate=rate, learning_rate_decay=decay))
        by_hundreds = 100.0 * best.reshape(len(best), -1, 100).mean(axis=2)
        curves[name] = np.arange(50, steps, 100), by_hundreds
    return [Panel("Drifting testbed, epsilon .1", "step", "optimal action, %", curves)]


def cliff(keys: Key[Array, " runs"]) -> list[Panel]:
    """Example 6.6: what is earned while exploring."""
    env, episodes = envs.make("CliffWalking-purerl", 1), 500
    agents = {
        "Q-learning": (q_learning.q_learning, -49.7, 0.5),
        "SARSA": (sarsa.sarsa, -26.8, 0.4),
        "Expected SARSA": (expected_sarsa.expected_sarsa, -20.9, 0.15),
    }
    curves, references = {}, []
    for name, (factory, value, error) in agents.items():
        table, _ = episodes_of(env, factory(env.spec), episodes)(keys, tables.Hypers())
        by_tens = table.episode_return.reshape(len(keys), -1, 10).mean(axis=2)
        curves[name] = np.arange(5.5, episodes, 10), by_tens
        references.append(Reference(name, 401, 500, value, error))
    return [Panel("Cliff", "episode", "return", curves, tuple(references), (-100.0, 0.0), "lower right")]


def short_walk(keys: Key[Array, " runs"]) -> list[Panel]:
    """Example 6.2: TD(0) and Monte Carlo, which is n-step TD with n at least an episode's length."""
    env, measure = walk(5)
    episodes, policy, table = 100, prediction.uniform(env.spec), features.table(env.spec)
    td = episodes_of(env, n_step_td.n_step_td(env.spec, table, policy, n=1), episodes, measure)
    monte_carlo = episodes_of(env, n_step_td.n_step_td(env.spec, table, policy, n=200), episodes, measure)
    lines = {
        "TD(0), alpha .05": (td, 0.05, 0.036, 0.0005),
        "TD(0), alpha .1": (td, 0.1, 0.056, 0.0005),
        "TD(0), alpha .15": (td, 0.15, 0.071, 0.0005),
        "Monte Carlo, alpha .02": (monte_carlo, 0.02, 0.082, 0.0005),
    }
    x, curves, references = np.arange(1, episodes + 1), {}, []
    for name, (learn, rate, value, error) in lines.items():
        curves[name] = x, learn(keys, prediction.Hypers(learning_rate=rate, initial_value=0.5))[1]
        references.append(Reference(name, episodes, episodes, value, error))
    return [Panel("Walk of 5", "episode", "RMS error of V", curves, tuple(references), (0.0, 0.25))]


def long_walk(keys: Key[Array, " runs"]) -> list[Panel]:
    """Figures 7.2 and 12.6: n-step TD and TD(lambda), by their rates."""
    env, measure = walk(19, left_reward=-1.0)
    episodes, policy, table = 10, prediction.uniform(env.spec), features.table(env.spec)
    rates = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0], np.float32)

    def errors(learn, make_hypers):
        """Return the mean over the first episodes for each rate [runs, rates]."""
        columns = [learn(keys, make_hypers(rate))[1].mean(axis=1) for rate in rates]
        return rates, np.minimum(np.nan_to_num(np.stack(columns, axis=1), nan=np.inf), 10.0)

    by_steps, by_traces, references = {}, {}, []
    for n, best, value in ((1, 0.8, 0.3455), (2, 0.6, 0.2774), (4, 0.4, 0.2644), (8, 0.2, 0.2790)):
        learn = episodes_of(env, n_step_td.n_step_td(env.spec, table, policy, n=n), episodes, measure)
        by_steps[f"n = {n}"] = errors(learn, lambda rate: prediction.Hypers(learning_rate=rate))
        references.append(Reference(f"n = {n}", best, best, value, 0.00005))
    learn = episodes_of(env, td_lambda.td_lambda(env.spec, table, policy), episodes, measure)
    for decay in (0.0, 0.4, 0.8, 0.9):
        numbers = functools.partial(td_lambda.Hypers, trace_decay=decay)
        by_traces[f"lambda = {decay:g}"] = errors(learn, lambda rate, numbers=numbers: numbers(learning_rate=rate))
    title, labels = "Walk of 19: ", ("alpha", "RMS error of V, first 10 episodes")
    return [
        Panel(title + "n-step TD", *labels, by_steps, tuple(references), (0.2, 0.6)),
        Panel(title + "TD(lambda)", *labels, by_traces, (), (0.2, 0.6)),
    ]


def maximization_bias(keys: Key[Array, " runs"]) -> list[Panel]:
    """Figure 6.5: how often runs go left."""
    env, episodes = envs.make("MaximizationBias-purerl", 1), 300

    def two_actions_in_a(state):
        learned = {"values", "first", "second"} & set(vars(state))
        return dataclasses.replace(state, **{name: getattr(state, name).at[A, 2:].set(-jnp.inf) for name in learned})

    agents = {
        "Q-learning": (q_learning.q_learning, 87, 12),
        "Double Q-learning": (double_q_learning.double_q_learning, 45, 7),
    }
    curves, references = {}, []
    for name, (factory, *values) in agents.items():
        learn = episodes_of(env, factory(env.spec), episodes, prepare=two_actions_in_a)
        table, _ = learn(keys, tables.Hypers(learning_rate=0.1))
        curves[name] = np.arange(1, episodes + 1), 100.0 * (table.episode_length == 2)  # to B, and on to the end
        references += [Reference(name, at, at, value, 0.5) for at, value in zip((10, 300), values, strict=True)]
    return [Panel("Maximization bias", "episode", "left, %", curves, tuple(references), (0.0, 100.0))]


def dyna_maze(keys: Key[Array, " runs"]) -> list[Panel]:
    """Figure 8.2: how planning spares experience."""
    env, episodes = envs.make("DynaMaze-purerl", 1), 30
    hypers = {"learning_rate": 0.1, "discount": 0.95, "exploration": 0.1}
    runs = 30  # of the book's curves, from which the references are
    curves, references = {}, []
    for steps, value in ((0, 546.0), (5, 55.0), (50, 18.0)):
        agent = dyna_q.dyna_q(env.spec, planning_steps=steps)
        table, _ = episodes_of(env, agent, episodes)(keys, tables.Hypers(**hypers))
        name = f"Dyna-Q, {steps} steps"
        curves[name] = np.arange(1, episodes + 1), table.episode_length.astype(float)
        references.append(Reference(name, 3, 3, value, float(table.episode_length[:, 2].std() / np.sqrt(runs))))
    agent = prioritized_sweeping.prioritized_sweeping(env.spec, planning_steps=5)
    table, _ = episodes_of(env, agent, episodes)(keys, prioritized_sweeping.Hypers(**hypers | {"learning_rate": 0.5}))
    curves["Prioritized sweeping, 5, alpha .5"] = np.arange(1, episodes + 1), table.episode_length.astype(float)
    return [Panel("Dyna maze", "episode", "steps", curves, tuple(references), (0.0, 800.0))]


EXPERIMENTS = testbed, drifting_testbed, cliff, short_walk, long_walk, maximization_bias, dyna_maze
FEWER = drifting_testbed, long_walk, dyna_maze  # many or long curves, where a quarter of the runs says as much


def panels_of(experiment: Callable[[Key[Array, " runs"]], list[Panel]], keys: Key[Array, " runs"]) -> list[Panel]:
    """Return what an experiment draws, from keys of its own."""
    runs = len(keys) // 4 if experiment in FEWER else len(keys)
    return experiment(jax.vmap(jax.random.fold_in, (0, None))(keys[:runs], EXPERIMENTS.index(experiment)))


def packed(panels: list[Panel]) -> dict[str, np.ndarray]:
    """Return panels as arrays by name."""
    arrays = {"panels": np.array([json.dumps(panel._replace(curves=list(panel.curves))) for panel in panels])}
    for place, panel in enumerate(panels):
        for name, (x, values) in panel.curves.items():
            arrays |= {f"{place} x {name}": np.asarray(x), f"{place} y {name}": values}
    return arrays


def unpacked(arrays: dict[str, np.ndarray]) -> list[Panel]:
    """Return the panels that `packed` made arrays of."""
    panels = []
    for place, text in enumerate(arrays["panels"]):
        panel = Panel(*json.loads(str(text)))
        curves = {name: (arrays[f"{place} x {name}"], arrays[f"{place} y {name}"]) for name in panel.curves}
        panels.append(panel._replace(curves=curves, references=tuple(Reference(*row) for row in panel.references)))
    return panels


# --- what is told ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A value beside its reference."""

    panel: str
    quantity: str
    curve: str
    at: str
    found: float
    error: float
    reference: float
    reference_error: float
    apart: float  # in standard errors of the difference


def per_run(x: np.ndarray, values: np.ndarray, first: float, last: float) -> np.ndarray:
    """Return the mean of each run over the points from `first` to `last`: [runs, points] -> [runs]."""
    inside = (x >= first - 1e-6) & (x <= last + 1e-6)
    return values[:, inside].mean(axis=1)


def mean_and_error(values: np.ndarray) -> tuple[Any, Any]:
    """Return the mean over runs, the first axis, and its standard error."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def rows_of(panel: Panel) -> list[Row]:
    """Compare what was found with the references of a panel."""
    rows = []
    for one in panel.references:
        found, error = mean_and_error(per_run(*panel.curves[one.curve], one.first, one.last))
        apart = float((found - one.value) / np.hypot(error, one.error))
        at = f"{one.first:g}" if one.first == one.last else f"{one.first:g}-{one.last:g}"
        at = f"{panel.xlabel} {at}"
        rows.append(Row(panel.title, panel.ylabel, one.curve, at, float(found), float(error), *one[3:], apart))
    return rows


def picture(panels: list[Panel], path: Path) -> None:
    """Save the page: means with their 95 % intervals, references as diamonds, or bars where they are means over x."""
    lines, columns = -(-len(panels) // 3), min(len(panels), 3)
    figure = plots.new_figure(5.0 * columns, 4.0 * lines)
    for panel, axes in zip(panels, figure.subplots(lines, columns, squeeze=False).ravel(), strict=False):
        drawn, colors = {}, dict(zip(panel.curves, plots.COLORS, strict=False))
        for name, (x, values) in panel.curves.items():
            mean, error = mean_and_error(values)
            drawn[name] = x, mean, mean - 1.96 * error, mean + 1.96 * error
        plots.curves(axes, drawn, xlabel=panel.xlabel, ylabel=panel.ylabel, legend=panel.legend)
        for one in panel.references:
            style = {"color": colors[one.curve], "markeredgecolor": "black", "zorder": 5}
            if one.first == one.last:
                axes.plot(one.first, one.value, "D", markersize=6, **style)
            else:
                axes.plot([one.first, one.last], [one.value] * 2, "-k", linewidth=4, zorder=4)
                axes.plot([one.first, one.last], [one.value] * 2, "-", linewidth=2, **style)
        if panel.limits:
            axes.set_ylim(*panel.limits)
        axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=plots.TEXT)
    plots.save(figure, path)


def main(settings: Settings) -> None:
    """Run all, and tell what came of it."""
    with cli.bad_input():
        keys = driver.seed_keys(settings.seed, settings.runs)
    folder = parts.opened(settings, "textbook", "all")
    if folder.finished:
        return
    panels = []
    with folder:
        with Progress(len(EXPERIMENTS), description="textbook", unit="experiments") as progress:
            for number, experiment in enumerate(EXPERIMENTS):
                make = functools.partial(lambda experiment: packed(panels_of(experiment, keys)), experiment)
                panels += unpacked(folder.part(experiment.__name__, make))
                progress.update(number + 1)
        tell(panels, settings, folder)


def tell(panels: list[Panel], settings: Settings, folder: parts.Parts) -> None:
    """Print a table, save the page, write the results."""
    rows = [row for panel in panels for row in rows_of(panel)]
    print(f"means of {settings.runs} runs, or a quarter of them; references as in Sutton & Barto, 2nd edition")
    print(f"{'':27s} {'':24s} {'':15s} {'found':>16s}  {'reference':>17s}  standard errors apart")
    for row in rows:
        found, reference = f"{row.found:.4g} +- {row.error:.2g}", f"{row.reference:.4g} +- {row.reference_error:.2g}"
        print(f"{row.panel:27.27s} {row.curve:24.24s} {row.at:15s} {found:>16s}  {reference:>17s}  {row.apart:+.1f}")
    picture(panels, folder.directory / "textbook.png")
    every = "all of the book's"
    folder.finish(
        {f"{panel.title}, {panel.ylabel}: {name}": y for panel in panels for name, (_, y) in panel.curves.items()},
        {"agent": every, "env": every, "seeds": settings.runs, "rows": [row._asdict() for row in rows]},
        ["textbook.png"],
    )


if __name__ == "__main__":
    cli.start(main, Settings)
