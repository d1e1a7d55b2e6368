"""Bad inputs of what splits runs over devices and processes."""

from __future__ import annotations

import os
from unittest import mock

import jax
from jax.sharding import PartitionSpec as P

from bad_inputs.rows import env, key, row
from purerl import distributed, launch, loop, sharding, spread
from purerl.agents import q_learning

MESH = sharding.mesh(model=1)


def rules(*given):
    return sharding.layout(MESH, given)


def joined(**environment):
    """Join as the environment says; nothing of it is true."""
    with mock.patch.dict(os.environ, {f"PURERL_{name.upper()}": value for name, value in environment.items()}):
        distributed.start()


def begun(layout):
    return loop.begin(key(), q_learning.q_learning(env().spec), env(), q_learning.Hypers(), layout=layout)


ROWS = {
    "sharding.mesh": (
        row("no devices for data", lambda: sharding.mesh(data=0), ValueError, "data is 0"),
        row("half a device", lambda: sharding.mesh(model=0.5), ValueError, "model is 0.5"),
        row("less than no runs", lambda: sharding.mesh(run=-1), ValueError, "run is -1"),
        row("more than there are", lambda: sharding.mesh(data=99, model=2), ValueError, "data 99 x model 2", "devices"),
        row("text", lambda: sharding.mesh(data="2"), ValueError, "data is '2'"),
    ),
    "sharding.sizes_of": (
        row("a number", lambda: sharding.sizes_of("8"), ValueError, "mesh is '8'", "data=4,model=2"),
        row("another axis", lambda: sharding.sizes_of("date=8"), ValueError, "mesh is 'date=8'"),
        row("no size", lambda: sharding.sizes_of("data="), ValueError, "mesh is 'data='"),
        row("none", lambda: sharding.sizes_of("data=0"), ValueError, "mesh is 'data=0'"),
        row("an axis twice", lambda: sharding.sizes_of("data=1,data=2"), ValueError, "mesh is 'data=1,data=2'"),
    ),
    "sharding.layout": (
        row("sizes", lambda: sharding.layout({"data": 2}), TypeError, "mesh is {'data': 2}", "sharding.mesh"),
        row(
            "axes of another name",
            lambda: sharding.layout(jax.make_mesh((1, 1), ("x", "y"))),
            ValueError,
            "mesh has the axes {'x': 1, 'y': 1}",
        ),
        row("one rule", lambda: rules("kernel"), TypeError, "rules has 'kernel'", "pairs"),
        row("a text for a spec", lambda: rules(("kernel", "model")), TypeError, "rules has ('kernel', 'model')"),
        row("no expression", lambda: rules(("(", P("model"))), ValueError, "the pattern '('", "regular expression"),
        row("an axis there is not", lambda: rules(("kernel", P("run"))), ValueError, "splits over ['run']"),
        row("a dict", lambda: sharding.layout(MESH, {"kernel": P("model")}), TypeError, "rules is"),
    ),
    "distributed.start": (
        row("text for an address", lambda: distributed.start("here", 2, 0), ValueError, "coordinator is 'here'"),
        row("no processes", lambda: distributed.start("here:1", 0, 0), ValueError, "processes is 0"),
        row("one too many", lambda: distributed.start("here:1", 2, 2), ValueError, "process is 2"),
        row("no number of one's own", lambda: distributed.start("here:1", 2), ValueError, "process is None"),
        row("a short time", lambda: distributed.start("a:1", 2, 0, heartbeat_seconds=0), ValueError, "heartbeat_sec"),
        row("text in the environment", lambda: joined(processes="two"), ValueError, "PURERL_PROCESSES is 'two'"),
        row(
            "no number there",
            lambda: joined(processes="2", coordinator="here:1", process="first"),
            ValueError,
            "PURERL_PROCESS is 'first' in the environment",
        ),
    ),
    "distributed.from_first": (
        row("what it returned", lambda: distributed.from_first(3), TypeError, "make is 3"),
        row("a text", lambda: distributed.from_first("name"), TypeError, "make is 'name'"),
        row("nothing", lambda: distributed.from_first(None), TypeError, "make is None"),
        row("a list", lambda: distributed.from_first([]), TypeError, "make is []"),
        row("a dict", lambda: distributed.from_first({}), TypeError, "make is {}"),
    ),
    "launch.launch": (
        row("no processes", lambda: launch.launch(["a.py"], 0), ValueError, "processes is 0"),
        row("a fraction", lambda: launch.launch(["a.py"], 1.5), ValueError, "processes is 1.5"),
        row("less than no devices", lambda: launch.launch(["a.py"], 1, devices=-1), ValueError, "devices is -1"),
        row("less than no restarts", lambda: launch.launch(["a.py"], 1, restarts=-1), ValueError, "restarts is -1"),
        row("a short heartbeat", lambda: launch.launch(["a.py"], 1, heartbeat=-1), ValueError, "heartbeat is -1"),
    ),
}
# Of arguments that stand in other tables, too: layouts.
MORE = (
    row("a mesh for a layout", lambda: begun(MESH), TypeError, "layout is", "sharding.layout(mesh)"),
    row("a mesh for a spread", lambda: spread.choose(2, layout=MESH), TypeError, "layout is", "sharding.layout(mesh)"),
    row(
        "devices beside a layout",
        lambda: spread.choose(2, devices=1, layout=sharding.layout(MESH)),
        ValueError,
        "devices is 1 and a layout is given",
    ),
)
ROWS["sharding.require_fitting"] = MORE
FEW: dict[str, str] = {"sharding.require_fitting": "the kinds of one argument, wherever it is taken"}
