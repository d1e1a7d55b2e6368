"""Runs split over a mesh: where their parts lie, that they are the same runs, and what devices have to say."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from purerl import checkpoint, cli, driver, envs, loop, networks, points, replay, sharding, spread, sweep, training
from purerl.agents import a2c, dqn
from purerl.base import cast_hypers

MESHES = [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8)]


def on_eight(*asked: str, **environment: str) -> list[dict]:
    """Return what on_meshes.py says of each that is asked for."""
    script = Path(__file__).parent / "on_meshes.py"
    done = subprocess.run(
        [sys.executable, str(script), *asked],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def places_of(found: dict) -> Counter:
    """Return how many collectives there are by kind and loop: of a rollout, of a step of learning, or once per update.

    A place names the loops around an operation: those of rows, blocks and iterations are around all.
    """
    loops = Counter()
    for kind, place in found["collectives"]:
        assert place, "every collective is known by the operation that it was made for"
        where = "rollout" if "rollout" in place else "minibatch" if place.count("while/body") > 2 else "update"
        loops[kind, where] += 1
    return loops


def test_rollouts_are_without_collectives_and_learning_has_those_that_it_must():
    wide, deep = on_eight("ppo:CartPole-v1:4,2", "dqn:CartPole-v1:1,8")
    for found, model in ((wide, 2), (deep, 8)):
        assert not [place for _, place in found["collectives"] if "rollout" in place]
        assert found["params"] <= 1e-5
        assert found["discrete states"]
        leaves, whole, *held = found["split"]
        assert (leaves > 0, held) == (True, [whole // model])
    # PPO on both axes. Of a minibatch: the sum over `model` after the second layer (actor and critic in one), that of
    # the gradients over `data`, that of their norm over `model`, and three to standardise advantages. Backwards there
    # is none over `model`: it is for the gradient of what the pair of layers reads, and that is data. Once: what acts
    # is gathered (two kernels and a bias), and the networks read the rollout.
    assert places_of(wide) == {
        ("all-reduce", "minibatch"): 6,
        ("all-gather", "update"): 3,
        ("all-reduce", "update"): 1,
    }
    # DQN on `model` alone. Of an update: the sums of three passes in one, and the norm; what acts is gathered once.
    assert Counter(kind for kind, _ in deep["collectives"]) == {"all-reduce": 2, "all-gather": 3}


def test_a_vmapped_sweep_has_an_axis_of_its_own_on_a_mesh():
    (found,) = on_eight("sweep:CartPole-v1:2,2")
    assert found["episodes"]
    assert found["runs differ"]
    assert found["metrics"] <= 1e-5


@pytest.mark.slow
def test_every_mesh_makes_the_same_run(slow_result):
    cases = [(agent, "CartPole-v1") for agent in ("ppo", "trpo", "dqn", "trpo_undamped")]
    cases.append(("ppo", "Breakout-MinAtar"))
    told = []
    for agent, env in cases:
        found = on_eight(*[f"{agent}:{env}:{data},{model}" for data, model in MESHES])
        for one, (_, model) in zip(found, MESHES, strict=True):
            _, whole, *held = one["split"]
            assert held == [whole // model], one["asked"]
            assert not [place for _, place in one["collectives"] if "rollout" in place]
            # At its own damping TRPO's step depends on the order in which samples are summed, and is only told.
            assert agent == "trpo_undamped" or (one["discrete states"] and one["params"] <= 1e-5), one["asked"]
        params, later, states = (max(one[name] for one in found) for name in ("params", "params after ten", "states"))
        equal = "bit-equal" if all(one["discrete states"] for one in found) else "not equal"
        told.append(
            f"{agent} {env}: parameters {params:.1e} after one update, {later:.1e} after ten, floats of states "
        )
        told[-1] += f"{states:.1e}, discrete ones {equal}"
    slow_result("; ".join(told) + f"; on {MESHES}")


@pytest.mark.slow
def test_in_float64_meshes_differ_by_nothing_but_its_rounding(slow_result):
    found = on_eight("ppo:CartPole-v1:4,2", "ppo:CartPole-v1:2,4", JAX_ENABLE_X64="1")
    assert all(one["params"] <= 1e-10 and one["params after ten"] <= 1e-10 for one in found)
    told = [f"{one['asked']} {one['params']:.1e} after one update, {one['params after ten']:.1e}" for one in found]
    slow_result("; ".join(told) + " after ten")


# --- on the two devices of this process -----------------------------------------------------------------------------


def cart(groups: int = 2, num_envs: int = 4):
    return envs.make("CartPole-v1", num_envs, groups=groups)


def actor_critic(env):
    both = networks.policy(env.spec, (8, 8)), networks.state_values(env.spec, (8, 8))
    return a2c.a2c(env.spec, *both), cast_hypers(a2c.Hypers())


def driven(layout, *, steps=160, **named):
    env = cart()
    agent, hypers = actor_critic(env)
    how = spread.choose(2, layout=layout)
    return driver.drive(
        driver.seed_keys(0, 2), [loop.Phase(agent, steps)], env, hypers, length=4, log_every=80, spread=how, **named
    )


def mesh_of(**sizes):
    return sharding.layout(sharding.mesh(**sizes))


@pytest.mark.parametrize("sizes", [{"data": 2}, {"model": 2}, {"run": 2}], ids=str)
def test_the_driver_trains_on_a_mesh_what_it_trains_on_single_devices(sizes):
    whole, split = driven(None, eval_env=cart(1, 3)), driven(mesh_of(**sizes), eval_env=cart(1, 3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.runs.agent.params, split.runs.agent.params
    )
    np.testing.assert_array_equal(whole.metrics["episodes"], split.metrics["episodes"])
    np.testing.assert_array_equal(whole.evaluation_returns, split.evaluation_returns)
    (axis,) = sizes
    kernel = split.runs.agent.params.actor["params"]["layers_0"]["MLP_0"]["Dense_0"]["kernel"]
    lengths = split.runs.episodes.episode_length
    held = [leaf.sharding.shard_shape(leaf.shape) for leaf in (kernel, lengths)]
    wanted = {"data": [(2, 4, 8), (2, 2)], "model": [(2, 4, 4), (2, 4)], "run": [(1, 4, 8), (1, 4)]}
    assert held == wanted[axis]


def test_a_run_goes_on_over_another_mesh_than_it_was_saved_on(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        whole = driven(mesh_of(data=2), checkpoints=checkpoints, checkpoint_every=80)
    last = checkpoint.steps(tmp_path)[-1]
    assert last == 160
    (tmp_path / f"{last}.json").unlink()  # as if it had been killed while it saved the end
    (tmp_path / f"{last}.begun").touch()
    for layout in (mesh_of(model=2), None):
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            again = driven(layout, checkpoints=checkpoints, checkpoint_every=0)
        assert again.metrics["environment_steps"].tolist() == [[80, 160]] * 2
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.runs.agent.params, again.runs.agent.params
        )


def test_rules_of_one_s_own_come_first_and_must_be_for_something():
    env = cart()
    agent, hypers = actor_critic(env)
    own = sharding.layout(sharding.mesh(model=2), [("critic/.*layers_0.*Dense_0/kernel$", P("model", None))])
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers, layout=own))(jax.random.key(0))
    first, second = (
        params["params"]["layers_0"]["MLP_0"]["Dense_0"]["kernel"]
        for params in (run.agent.params.actor, run.agent.params.critic)
    )
    assert (first.sharding.shard_shape(first.shape), second.sharding.shard_shape(second.shape)) == ((4, 4), (2, 8))
    for_nothing = sharding.layout(sharding.mesh(model=2), [("no_such_layer", P("model"))])
    with pytest.raises(ValueError, match="rules has 'no_such_layer', which is in no path; there are agent/params"):
        loop.begin(jax.random.key(0), agent, env, hypers, layout=for_nothing)


def test_widths_and_groups_that_do_not_divide_are_told():
    layout = mesh_of(model=2)
    env = cart()
    both = networks.policy(env.spec, (7, 7)), networks.state_values(env.spec, (8, 8))
    with pytest.raises(ValueError, match=r"Dense_0/bias has shape \(7,\), of which 7 is not divided by the 2 dev"):
        loop.begin(jax.random.key(0), a2c.a2c(env.spec, *both), env, cast_hypers(a2c.Hypers()), layout=layout)
    heads = networks.policy(env.spec, (6, 6), blocks="transformer", heads=3), networks.state_values(env.spec, ())
    with pytest.raises(ValueError, match=r"attention/.* has shape .* of which 3 is not divided by the 2 devices along"):
        loop.begin(jax.random.key(0), a2c.a2c(env.spec, *heads), env, cast_hypers(a2c.Hypers()), layout=layout)
    one_group = cart(1)
    agent, hypers = actor_critic(one_group)
    with pytest.raises(ValueError, match=r"env has 1 groups .* the mesh has data 2: .* groups=2\) makes"):
        loop.begin(jax.random.key(0), agent, one_group, hypers, layout=mesh_of(data=2))


def test_what_is_split_takes_its_share_of_a_device_exactly():
    env = cart()
    agent, hypers = actor_critic(env)
    layout = mesh_of(model=2)
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers, layout=layout))(jax.random.key(0))
    places = sharding.shardings(layout, run)
    told = sharding.bytes_per_device(places.agent, run.agent)
    held = Counter()
    for leaf in jax.tree.leaves(run.agent):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {told}
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(run.agent))
    torsos = 2 * 3 * 4 * (4 * 8 + 8 + 8 * 8)  # two networks, with Adam's two moments: kernel, bias and kernel, float32
    assert whole - told == torsos // 2


def test_replay_lies_with_its_environments():
    env = cart()
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (8, 8)))
    agent = replay.with_replay(learner, replay.uniform(env.spec, 40), batch_size=8)
    run = loop.begin(jax.random.key(0), agent, env, cast_hypers(dqn.Hypers()), layout=mesh_of(data=2))
    reward = run.agent.buffer.reward
    assert (reward.shape, reward.sharding.shard_shape(reward.shape)) == ((2, 20), (1, 20))


def test_pmap_takes_the_same_runs_one_for_each_device():
    env = cart()
    agent, hypers = actor_critic(env)
    train = training.trainer([loop.Phase(agent, 32)], env, length=4)
    keys = driver.seed_keys(0, 2)
    mapped = jax.pmap(train, in_axes=(0, None))(keys, hypers)
    found = sweep.run(train, keys, points.grid(hypers)).outputs
    for name, column in mapped.items():
        np.testing.assert_allclose(column, found[name][0], rtol=1e-5, err_msg=name)


def test_runs_are_vmapped_side_by_side_by_hand():
    env, layout = cart(), mesh_of(run=2)
    agent, hypers = actor_critic(env)
    keys = driver.seed_keys(0, 2)

    def train(key, layout=None):
        return loop.train(key, agent, env, hypers, iterations=3, length=4, layout=layout)[0].agent.params

    split = jax.jit(jax.vmap(lambda key: train(key, layout), spmd_axis_name="run"))(keys)
    for number, key in enumerate(keys):
        alone = jax.jit(train)(key)
        jax.tree.map(lambda a, b, number=number: np.testing.assert_allclose(a[number], b, atol=1e-5), split, alone)
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(split)} == {1}


def test_scripts_take_a_mesh_and_groups_of_its_size():
    settings = cli.Settings(env="CartPole-v1", num_envs=4, mesh="data=2")
    assert cli.groups_of(settings) == 2
    assert cli.groups_of(dataclasses.replace(settings, groups=4)) == 4
    assert cli.layout_of(settings).mesh.shape == {"run": 1, "data": 2, "model": 1}
    assert cli.environments(settings).spec.groups == 2
    assert str(cli.spread_of(settings, 3)) == "2 cpu devices as run 1 x data 2 x model 1, one run after another"
