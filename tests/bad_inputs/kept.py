"""What is kept on disk: checkpoints, policies, and the pictures of episodes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.rows import Row, env, folder, row
from purerl import checkpoint, envs, export, guards
from purerl.agents import q_learning
from purerl.base import Agent

TREE = {"a": jnp.zeros(3), "b": np.zeros(2, np.int64)}


@functools.cache
def kept() -> Path:
    """Return a folder with a checkpoint."""
    checkpoint.save(TREE, folder() / "kept", 3, {"told": 1})
    return folder() / "kept"


@functools.cache
def damaged() -> Path:
    """Return a folder with a checkpoint, of which a file is another one now."""
    checkpoint.save(TREE, folder() / "damaged", 3)
    (folder() / "damaged" / "3" / "header" / "metadata").write_text("{}")
    return folder() / "damaged"


@functools.cache
def emptied() -> Path:
    """Return a folder with a checkpoint whose list of files is none."""
    checkpoint.save(TREE, folder() / "emptied", 3)
    (folder() / "emptied" / "3.json").write_text("")
    return folder() / "emptied"


def saved(**changed: Any) -> Any:
    given = {"tree": TREE, "directory": folder() / "new", "step": 1, "about": {}}
    return checkpoint.save(**given | changed)


def read(call: Any) -> tuple[Row, ...]:
    """Return the rows of what is read from a folder, at a step."""
    return (
        row(
            "no folder", lambda: call(folder() / "none", None), FileNotFoundError, "none holds no checkpoint", "of none"
        ),
        row("a number", lambda: call(3, None), TypeError, "directory is 3", "a path"),
        row("another step", lambda: call(kept(), 4), FileNotFoundError, "no checkpoint of step 4", "of steps [3]"),
        row("a damaged one", lambda: call(damaged(), None), ValueError, "is damaged", "header/metadata"),
        row("a list of nothing", lambda: call(emptied(), None), ValueError, "3.json is not valid JSON"),
    )


@functools.cache
def agent() -> Agent:
    return q_learning.q_learning(env().spec)


def state() -> Any:
    return agent().init(jax.random.key(0), q_learning.Hypers())


@functools.cache
def policy() -> Path:
    """Return the file of a policy."""
    return export.save_policy(folder() / "policy.zip", agent(), state(), env(), q_learning.Hypers())


@functools.cache
def cut() -> Path:
    """Return the file of a policy, without its end."""
    (folder() / "cut.zip").write_bytes(policy().read_bytes()[:-9])
    return folder() / "cut.zip"


def exported(**changed: Any) -> Any:
    given = {
        "path": folder() / "another.zip",
        "agent": agent(),
        "state": state(),
        "env": env(),
        "hypers": q_learning.Hypers(),
    }
    return export.save_policy(**given | changed)


def loaded(call: Any) -> tuple[Row, ...]:
    """Return the rows of a policy's file."""
    return (
        row("no file", lambda: call(folder() / "none.zip"), FileNotFoundError, "none.zip is not there"),
        row("a number", lambda: call(3), TypeError, "path is 3", "a path"),
        row("another file", lambda: call(folder() / "file"), ValueError, "file is no purerl policy"),
        row("one cut short", lambda: call(cut()), ValueError, "cut.zip is no purerl policy, or it is cut short"),
        row("nothing", lambda: call(None), TypeError, "path is None", "a path"),
    )


def drawn(**changed: Any) -> Any:
    made = envs.create("CliffWalking-purerl")
    given = {"environment": made, "params": made.default_params, "states": (), "returns": np.zeros(0)}
    return envs.animate(**given | changed)


ROWS: dict[str, tuple[Row, ...]] = {
    "checkpoint.Checkpoints": (
        row("one", lambda: checkpoint.Checkpoints(folder() / "c", keep=1), ValueError, "keep is 1", "from 2 on"),
        row("a fraction", lambda: checkpoint.Checkpoints(folder() / "c", keep=2.5), ValueError, "keep is 2.5"),
        row("text", lambda: checkpoint.Checkpoints(folder() / "c", keep="2"), ValueError, "keep is '2'"),
        row("a number", lambda: checkpoint.Checkpoints(3), TypeError, "directory is 3", "a path"),
        row("a file", lambda: checkpoint.Checkpoints(folder() / "file"), OSError, "directory is", "file"),
        row("in a file", lambda: checkpoint.Checkpoints(folder() / "file" / "in"), OSError, "directory is", "file"),
    ),
    "checkpoint.save": (
        row("text for a leaf", lambda: saved(tree={"name": "text"}), TypeError, "name is of type str", "arrays"),
        row("a float for a leaf", lambda: saved(tree={"rate": 0.1}), TypeError, "rate is of type float", "arrays"),
        row(
            "one path twice",
            lambda: saved(tree={"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}),
            ValueError,
            "a/b is the path of two leaves",
        ),
        row("a fraction of a step", lambda: saved(step=1.5), ValueError, "step is 1.5", "whole number"),
        row("a step before the first", lambda: saved(step=-1), ValueError, "step is -1"),
        row("a set to tell about", lambda: saved(about={"a": {1}}), TypeError, "about.a is of type set"),
        row("a number", lambda: saved(directory=3), TypeError, "directory is 3", "a path"),
        row("a file", lambda: saved(directory=folder() / "file"), OSError, "directory is", "file"),
    ),
    "checkpoint.restore": (
        *read(lambda directory, step: checkpoint.restore(directory, TREE, step)),
        row(
            "another shape",
            lambda: checkpoint.restore(kept(), {**TREE, "a": jnp.zeros(4)}),
            ValueError,
            "holds a of float32 [3], and this run has a of float32 [4]",
        ),
        row(
            "a leaf more",
            lambda: checkpoint.restore(kept(), {**TREE, "c": TREE["a"]}),
            ValueError,
            "lacks c of float32",
        ),
        row("a leaf less", lambda: checkpoint.restore(kept(), {"a": TREE["a"]}), ValueError, "holds b of int64"),
        row("text", lambda: checkpoint.restore(kept(), {**TREE, "a": "text"}), TypeError, "a is of type str", "arrays"),
    ),
    "checkpoint.about": read(checkpoint.about),
    "checkpoint.steps": (row("a number", lambda: checkpoint.steps(3), TypeError, "directory is 3", "a path"),),
    "export.save_policy": (
        row("a factory", lambda: exported(agent=q_learning.q_learning), TypeError, "agent is", "an Agent"),
        row("a name", lambda: exported(env="CliffWalking-purerl"), TypeError, "env is", "envs.make"),
        row("a number", lambda: exported(path=3), TypeError, "path is 3", "a path"),
        row("no runs", lambda: exported(runs=0), ValueError, "runs is 0"),
        row("another number of runs", lambda: exported(runs=3), ValueError, "with runs=3 it takes a leading axis of 3"),
        row("nothing for a state", lambda: exported(state=None), ValueError, "state is None"),
        row("no hypers", lambda: exported(hypers=q_learning.Hypers), TypeError, "hypers is the class"),
    ),
    "export.load_policy": (
        *loaded(export.load_policy),
        row("a run too far", lambda: export.load_policy(policy(), 1), ValueError, "run is 1", "1 runs"),
        row("a run before the first", lambda: export.load_policy(policy(), -1), ValueError, "run is -1"),
        row("text for a run", lambda: export.load_policy(policy(), "0"), ValueError, "run is '0'"),
    ),
    "export.load_policies": loaded(export.load_policies),
    "envs.drawings.animate": (
        row("a name", lambda: drawn(environment="CartPole-v1"), TypeError, "environment is 'CartPole-v1'"),
        row("no pictures", drawn, ValueError, "returns"),
    ),
    "envs.drawings.can_be_drawn": (
        row("a name", lambda: envs.can_be_drawn("CartPole-v1"), TypeError, "environment is 'CartPole-v1'"),
    ),
    "guards.nan_checked": (row("no function", lambda: guards.nan_checked(3), TypeError, "function is 3"),),
}

FEW: dict[str, str] = {
    "checkpoint.steps": "a path is all it takes, and nothing need be there",
    "envs.drawings.animate": "states and returns are those of an episode that play has played",
    "envs.drawings.can_be_drawn": "an environment is all it takes",
    "guards.nan_checked": "a function is all it takes",
}
