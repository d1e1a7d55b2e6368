"""The script that splits a wide network over a mesh, and what it reads in compiled programs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from scripts import EXPERIMENTS

from purerl import compiled, results

TINY = "--width", "8", "--layers", "1", "--seeds", "2", "--total-steps", "2048", "--mesh", "data=2,model=4"


def start(out, *flags):
    """Run the script as a user does, in a process of its own: it makes devices for itself."""
    own = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, str(EXPERIMENTS / "tensor_parallel.py"), *TINY, "--out", str(out), *flags]
    own["PYTHONPATH"] = os.pathsep.join([str(EXPERIMENTS.parent), own.get("PYTHONPATH", "")])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=own)


def check(out, printed, *, split, blocks, gathered, forward, backward):
    """Hold what was found against what was counted by hand."""
    found = results.load(out).summary
    held = found["held"]
    assert held["split leaves"] == split
    assert held["split bytes on devices"] == [held["split bytes"] / 4] * 8
    assert held["whole bytes on devices"] == [held["whole bytes"]] * 8
    assert f"{split} leaves" in printed
    assert f"exactly {held['split bytes']:,} / 4" in printed
    lines = {(line["where"], line["over"], line["what"]): line for line in found["collectives"]}
    assert [line["arrays"] for (where, *_), line in lines.items() if where == "rollout"] == [0]
    wanted = {
        ("update", "model", "gathering what acts"): gathered,
        ("update", "model", "forward, on the whole rollout"): forward,
        ("update", "data", "episodes, their returns and lengths"): 3,
        ("minibatch", "model", "forward and backward"): forward + backward,
        ("minibatch", "data", "advantages' mean, deviation, largest"): 4,
    }
    assert {name: lines[name]["arrays"] for name in wanted} == wanted
    assert lines["minibatch", "data", "gradients"]["operations"] == 1
    assert lines["minibatch", "model", "the gradient's norm"]["operations"] == 1
    others = [name for name, line in lines.items() if line["operations"] != 0 and line["theory"] == 0]
    assert others == []
    assert 0 < found["apart"]["after one update"]["most"] < 1e-5
    assert found["updates with the same episodes"] == [2, 2]
    assert found["returns"]["mesh"]["per_seed"] == found["returns"]["one device"]["per_seed"]
    assert found["differences"]["mean"] == 0.0
    assert blocks in printed


@pytest.mark.timeout(400)
def test_the_script_splits_what_it_says_and_learns_the_same_on_the_mesh(tmp_path):
    out = tmp_path / "run"
    done = start(out, "--blocks", "dense", "--layers", "2")
    assert done.returncode == 0, done.stderr
    # Of each network's layers: a kernel and a bias by columns, a kernel by rows; and Adam's two moments of each.
    check(out, done.stdout, split=18, blocks="2 dense", gathered=3, forward=2, backward=0)
    names = {"settings.json", "metrics.npz", "summary.json", "tensor_parallel.png"}
    assert {path.name for path in out.iterdir()} == names
    metrics = results.load(out).metrics
    assert metrics["episode_return on mesh"].shape == (2, 2)
    np.testing.assert_array_equal(metrics["environment_steps"], [1024, 2048])
    assert (out / "tensor_parallel.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("blocks", "layers", "counts"),
    [
        ("residual", 1, {"split": 18, "gathered": 3, "forward": 2, "backward": 2}),
        ("transformer", 1, {"split": 60, "gathered": 10, "forward": 4, "backward": 8}),
    ],
)
def test_other_layers_are_split_and_sum_as_theory_says(tmp_path, blocks, layers, counts):
    out = tmp_path / "run"
    done = start(out, "--blocks", blocks, "--layers", str(layers))
    assert done.returncode == 0, done.stderr
    check(out, done.stdout, blocks=f"{layers} {blocks}", **counts)
    again = start(out, "--blocks", blocks, "--layers", str(layers), "--resume", "auto")
    assert "holds this run, and it is finished" in again.stdout
    refused = start(out, "--mesh", "data=4,model=4", "--resume", "auto")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "mesh is run 1 x data 4 x model 4; there are 8 devices" in refused.stderr


# What XLA wrote of meshes of 2 x 4 devices, in its three ways, and which axes that is.
LINES = [
    ("{{0,1,2,3},{4,5,6,7}}", ("model",)),
    ("[2,4]<=[8]", ("model",)),
    ("[4,2]<=[2,4]T(1,0)", ("data",)),
    ("[1,8]<=[8]", ("data", "model")),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",)),
    ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", ("model",)),
    ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", ("data",)),
    ("{{0,3},{1,2},{4,7},{5,6}}", ()),
    ("what is not known", ()),
]


@pytest.mark.parametrize(("groups", "axes"), LINES)
def test_collectives_are_read_with_their_place_and_their_devices(groups, axes):
    text = f"""
  %a.1 = (f32[], f32[8]{{0}}) all-reduce(%b, /*index=1*/%c), replica_groups={groups}, metadata={{op_name="jit(f)/sum"}}
  %d = f32[8]{{0}} add(%a, %b), metadata={{op_name="jit(f)/rollout/all-reduce("}}
  ROOT %e = f32[8]{{0}} all-gather-start(%b), replica_groups={groups}, dimensions={{0}}
"""

    mesh = AbstractMesh((1, 2, 4), ("run", "data", "model"))
    first, second = compiled.collectives(text)
    assert first[:3] == ("all-reduce", "jit(f)/sum", 2)
    assert second[:3] == ("all-gather", "", 1)
    assert first.groups == second.groups
    assert compiled.along(mesh, first.groups) == axes
