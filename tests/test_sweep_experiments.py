"""The scripts that sweep: what they leave, that they go on with what is there, and what they refuse."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any, Literal

import jax
import numpy as np
import pytest
from scripts import load

from purerl import archive, cli, driver, envs, loop, results, sweep, sweep_cli, sweep_reports, tables, training
from purerl.agents import q_learning
from purerl.interrupts import Stopped

# The scripts' ways with an agent that compiles in a second; the scripts themselves are run by slow tests below.
Axes = sweep_cli.axes(tables.Hypers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """Settings of Q-learning."""

    env: str = "CliffWalking-purerl"
    replacing: bool = False
    traces: bool = False  # what nothing but the groups' test looks at
    hypers: tables.Hypers = tables.Hypers()


Static = sweep_cli.choices(Settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swept(Settings):
    """Settings of a sweep of it."""

    sweep: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    static: Static = Static()  # pyright: ignore[reportInvalidTypeForm]


def phases(settings, spec):
    return [loop.Phase(q_learning.q_learning(spec), settings.total_steps)]


def run(flags):
    settings = cli.parse(Swept, flags)
    return sweep_cli.run(
        settings, phases, agent="q", hypers=lambda own: own.hypers, usual={"learning_rate": (0.1, 0.5)}
    )


FLAGS = ["--total-steps", "400", "--num-envs", "2", "--eval-episodes", "2", "--eval-max-steps", "30", "--seeds", "2"]
AXES = ["--sweep.learning-rate", "0.1", "0.5", "--sweep.exploration", "0.1", "0.3"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return run([*FLAGS, *AXES, "--out", str(tmp_path_factory.mktemp("sweep") / "run")])[0]


def test_a_sweep_leaves_a_table_pictures_and_an_index(swept):
    assert {path.name for path in swept.directory.iterdir()} == {
        "settings.json",
        "metrics.npz",
        "summary.json",
        "index.sqlite",
        "learning_curves.png",
        "sensitivity.png",
        "heat_map.png",
    }
    assert swept.metrics["episode_return"].shape == (4, 2, 100)
    assert swept.metrics["evaluation_return"].shape == (4, 2, 2)
    assert swept.summary["labels"] == {"learning_rate": [0.1, 0.1, 0.5, 0.5], "exploration": [0.1, 0.3, 0.1, 0.3]}
    assert swept.summary["environment_steps"] == list(range(4, 404, 4))
    for point, row in enumerate(swept.summary["points"]):
        np.testing.assert_allclose(row["per_seed"], swept.metrics["evaluation_return"][point].mean(axis=1), rtol=1e-5)


def test_a_sweep_is_read_as_a_labelled_table(swept, tmp_path):
    table = results.frame(results.load(swept.directory))
    assert list(table.columns) == ["learning_rate", "exploration", "seed", "score", "diverged_at"]
    assert len(table) == 8
    one = table[(table.learning_rate == 0.5) & (table.exploration == 0.1) & (table.seed == 1)]
    np.testing.assert_allclose(one.score, swept.metrics["evaluation_return"][2, 1].mean(), rtol=1e-5)
    results.write(tmp_path, settings={}, metrics={}, summary={"agent": "q"})
    with pytest.raises(ValueError, match="holds no sweep"):
        results.frame(results.load(tmp_path))


def test_every_run_is_what_it_would_be_alone(swept):
    env = envs.make("CliffWalking-purerl", 2)
    train = training.trainer(phases(Settings(total_steps=400), env.spec), env, rows=100)
    hypers = tables.Hypers(learning_rate=0.5, exploration=0.3)
    expected = jax.jit(train)(driver.seed_keys(0, 2)[1], hypers)
    for name in ("td_error", "episodes"):
        np.testing.assert_allclose(swept.metrics[name][3, 1], expected[name], rtol=1e-5)


def test_a_sweep_that_is_asked_to_end_keeps_what_is_finished_and_goes_on(swept, tmp_path, monkeypatch, capsys):
    add = archive.Archive.add

    def asked(self, *arguments):
        add(self, *arguments)
        signal.raise_signal(signal.SIGINT)

    out, whole = tmp_path / "run", [*FLAGS, *AXES]
    with monkeypatch.context() as patch:
        patch.setattr(archive.Archive, "add", asked)
        with pytest.raises(Stopped, match="stopped after 4 of 8 runs") as stop:
            run([*whole, "--out", str(out)])
    assert stop.value.directory == out
    capsys.readouterr()
    with pytest.raises(cli.BadInput, match=r"sweep.exploration \[0.1, 0.3\], and this one has \[0.1\]"):
        run([*FLAGS, *AXES[:-1], "--resume", str(out)])
    found = run([*whole, "--resume", str(out)])[0]
    assert "4 of 8 runs are there already" in capsys.readouterr().out
    assert found.metrics.keys() == swept.metrics.keys()
    for name, column in found.metrics.items():
        np.testing.assert_array_equal(column, swept.metrics[name], err_msg=name)
    assert found.summary["points"] == swept.summary["points"]
    again = run([*whole, "--resume", str(out)])[0]
    assert f"{out} holds all of this sweep, and it is finished" in capsys.readouterr().out
    assert again.summary == found.summary


def test_a_wish_to_end_between_groups_is_heard(tmp_path, monkeypatch, capsys):
    finish = archive.Archive.finish

    def asked(self, summary):
        finish(self, summary)
        signal.raise_signal(signal.SIGTERM)

    flags = [*FLAGS, "--sweep.learning-rate", "0.1", "--static.traces", "true", "false"]
    with monkeypatch.context() as patch:
        patch.setattr(archive.Archive, "finish", asked)
        with pytest.raises(Stopped, match="stopped after 2 of 4 runs"):
            run([*flags, "--out", str(tmp_path / "run")])
    assert len(run([*flags, "--resume", str(tmp_path / "run")])) == 2
    assert "2 of 4 runs are there already" in capsys.readouterr().out


def test_a_damaged_chunk_is_told(swept, tmp_path, monkeypatch):
    add, out = archive.Archive.add, tmp_path / "run"

    def cut(self, *arguments):
        add(self, *arguments)
        for path in self.chunks.iterdir():
            path.write_bytes(path.read_bytes()[:-9])

    monkeypatch.setattr(archive.Archive, "add", cut)
    with pytest.raises(results.Damaged, match="is not a valid npz file; it may be cut short"):
        run([*FLAGS, *AXES, "--out", str(out)])


def test_a_finished_sweep_is_not_run_again_and_others_are_refused(swept, tmp_path):
    for changed, sentence in [
        (["--out", str(swept.directory)], "already holds a finished run"),
        (["--sweep.discount", "nan"], "discount is .* an axis takes a list of"),
        (["--stop-at-return", "7"], "a sweep runs every point to its end"),
        (["--log-every", "7"], "a sweep has up to a hundred rows"),
        (["--eval-every", "7"], "a sweep evaluates at the end, or with 0 never"),
        (["--env-params.max-steps-in-episode", "0"], "takes at least 1 step"),
        (["--static.num-envs", "2", "x"], "static.num_envs has 'x'; it takes what --num-envs does"),
        (["--static.num-envs", "0"], "num_envs is 0"),
        (["--static.env", "Maze-purerl", "--env-params.cliff-reward", "-3"], "env_params are given, and static.env"),
        (["--static.num-envs", "4", "4"], "static.num_envs has 4 4; it takes each value once"),
        (["--devices", "9"], "devices is 9; there are 2"),
        (["--memory", "-1"], "memory is -1.0; it takes a positive number of GiB"),
        (["--memory", "1e-6"], r"one run takes .* MiB of memory and there are 0.00 MiB"),
    ]:
        with pytest.raises(cli.BadInput, match=sentence):
            run([*FLAGS, *AXES, "--out", str(tmp_path / sentence[:9]), *changed])
    assert {path.name for path in tmp_path.iterdir()} == {"one run t"}  # all others before a folder is made


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_scripts_refuse_before_anything_is_trained(name, tmp_path):
    script = load(f"sweep_{name}")
    with pytest.raises(cli.BadInput, match=r"learning_rate is .* an axis takes a list of finite numbers"):
        script.main(cli.parse(script.Settings, ["--sweep.learning-rate", "nan", "--out", str(tmp_path / "x")]))
    assert not (tmp_path / "x").exists()


def test_static_choices_are_groups_each_a_program_and_those_finished_are_not_run_again(tmp_path, capsys):
    flags = [*FLAGS, "--out", str(tmp_path / "run"), "--static.num-envs", "2", "4", "--static.traces", "true"]
    first, second = run(flags)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "num_envs=2,traces=True",
        "num_envs=4,traces=True",
    ]
    printed = capsys.readouterr().out
    announced = printed.index("2 groups, each a program to compile:\n  num_envs 2  traces True\n  num_envs 4")
    assert announced < printed.index("q on CliffWalking-purerl, num_envs 2, traces True: 400 steps a run")
    assert (first.settings["num_envs"], second.settings["num_envs"]) == (2, 4)
    assert second.settings["traces"] is True
    table = results.frame(results.load(tmp_path / "run"))
    assert list(table.columns)[:4] == ["num_envs", "traces", "learning_rate", "seed"]
    assert sorted(set(table.num_envs)) == [2, 4]
    with pytest.raises(cli.BadInput, match="already holds all of this sweep"):
        run(flags)
    assert run([*FLAGS, "--resume", *flags[len(FLAGS) + 1 :]])[1].summary == second.summary
    third = run([*flags[:-5], "--static.num-envs", "2", "8", "--static.traces", "true"])[1]
    assert "4 of 8 runs are there already" in capsys.readouterr().out
    assert third.settings["num_envs"] == 8
    with pytest.raises(cli.BadInput, match="holds a sweep with seeds 2, and this one has 3"):
        run([*flags, "--seeds", "3"])


def test_choices_are_read_as_the_settings_are():
    @dataclasses.dataclass(frozen=True)
    class Given:
        hidden: tuple[int, ...] = ()
        activation: Literal["tanh", "relu"] = "tanh"
        observation_dtype: Literal["bool", "uint8"] | None = None
        double: bool = False
        env: str = ""
        env_params: None = None
        static: Any = None

    kinds = sweep_cli.choices(Given)
    asked = kinds(hidden=("64,64", "8"), activation=("relu",), observation_dtype=("bool",), double=("False",))
    found = sweep_cli.combinations(Given(static=asked))
    rest = {"activation": "relu", "observation_dtype": "bool", "double": False}
    assert found == [{"hidden": (64, 64)} | rest, {"hidden": (8,)} | rest]
    for bad in ({"activation": ("sin",)}, {"double": ("maybe",)}, {"hidden": ("a,b",)}):
        with pytest.raises(ValueError, match=f"static.{next(iter(bad))} has"):
            sweep_cli.combinations(Given(static=kinds(**bad)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_scripts_that_sweep_run_as_they_stand(name, tmp_path, slow_result):
    script = load(f"sweep_{name}")
    flags = ["--total-steps", "20000", "--seeds", "2", "--out", str(tmp_path / "run")]
    (found,) = script.main(cli.parse(script.Settings, flags))
    rows = found.summary["points"]
    best = max(row["iqm"] for row in rows)
    assert best > 60
    slow_result(f"{len(rows)} points, the best {best:.0f} after 20 000 steps")


def results_of(score, diverged=None):
    score = np.asarray(score, float)
    diverged = np.zeros(score.shape, bool) if diverged is None else np.asarray(diverged)
    outputs = {"evaluation_return": score[..., None], "diverged_at": np.where(diverged, 7, -1)}
    return sweep.Results(outputs, {"rate": np.arange(len(score)) / 10}, diverged)


def test_the_table_is_sorted_and_diverged_runs_are_named_and_left_out():
    found = results_of([[1, 2, 3], [9, np.inf, 8], [0, 0, 0]], [[False] * 3, [False, True, False], [True] * 3])
    rows = sweep_reports.summarise(found)
    assert [row["mean"] for row in rows] == [2.0, 8.5, None]
    assert rows[1]["diverged"] == {"1": 7}
    best, second, worst = sweep_reports.lines(found)[1:]
    assert "8.5" in best
    assert best.endswith("; seed 1 diverged in update 7")
    assert "2.0" in second
    assert "none" in worst


def test_without_evaluations_the_last_tenth_of_the_rows_counts():
    episodes = np.ones((1, 1, 20))
    episodes[..., -1] = 3
    returns = np.arange(20.0).reshape(1, 1, 20)
    outputs = {"episodes": episodes, "episode_return": returns, "diverged_at": np.full((1, 1), -1)}
    found = sweep.Results(outputs, {}, np.zeros((1, 1), bool))
    np.testing.assert_allclose(sweep_reports.score_of(found), [[(18 + 3 * 19) / 4]])
