"""Policies as files: they act as the agent does, to the bit, without it; what is damaged says so."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import CASES

from purerl import envs, export, networks, normalize, replay, sealed
from purerl.agents import dqn, ppo, q_learning
from purerl.base import Agent, Box, Discrete, Spec, cast_hypers, no_memory

COUNT = 3
# What is compared does not depend on how hard the compiler tries: most of the time is the compiler's.
CHEAP = {"xla_backend_optimization_level": "0"}
CARTPOLE = "CartPole-v1"
SPEC = Spec(Box((4,), np.dtype(np.float32), -np.inf, np.inf), Discrete(2), COUNT)


def begun(agent, hypers, seed=0):
    """A state as after some training: no two of its numbers alike; made of shapes, as compiling `init` takes long."""
    shapes = jax.eval_shape(agent.init, jax.random.key(0), cast_hypers(hypers))
    random = np.random.default_rng(seed)

    def drawn(leaf):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.asarray(random.uniform(0.0, 1.0, leaf.shape) if inexact else np.zeros(leaf.shape), leaf.dtype)

    return jax.tree.map(drawn, shapes)


def observations(space, count=COUNT):
    random = np.random.default_rng(1)
    if isinstance(space, Discrete):
        return jnp.asarray(random.integers(0, space.n, count), jnp.int32)
    return jnp.asarray(random.normal(size=(count, *space.shape)), space.dtype)


def acted(agent, state, hypers, observation, key):
    """Greedy and sampled actions, by the agent itself."""

    @partial(jax.jit, compiler_options=CHEAP)
    def both(key, state, observation, hypers):
        return [agent.act(key, state, (), observation, hypers, greedy=greedy)[0] for greedy in (True, False)]

    return [np.asarray(action) for action in both(key, state, observation, cast_hypers(hypers))]


def by_policy(policy, observation, key):
    @partial(jax.jit, compiler_options=CHEAP)
    def both(observation, key):
        return [policy(observation, key=key, greedy=greedy) for greedy in (True, False)]

    return [np.asarray(action) for action in both(jnp.asarray(observation), key)]


def same(one, other):
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


FEW = ("q_learning", "thompson_sampling", "dqn", "ppo", "trpo, continuous")


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.thorough] * (case.name not in FEW), id=case.name) for case in CASES],
)
def test_a_loaded_policy_acts_as_the_agent_does_and_keeps_no_more_than_it_needs(case, tmp_path):
    env = envs.make(case.env, COUNT)
    agent = case.make(env.spec)
    state, observation, key = begun(agent, case.hypers), observations(env.spec.observation), jax.random.key(5)
    path = export.save_policy(tmp_path / "policy.zip", agent, state, env, case.hypers)
    policy = export.load_policy(path)
    assert same(by_policy(policy, observation, key), acted(agent, state, case.hypers, observation, key))
    for word in ("optimizer", "buffer", "target", "critic", "trace", "model", "waiting", "learning_rate", "discount"):
        assert not [place for place in policy.arrays if word in place]
    assert policy.env == env.name
    assert policy.env_params.keys() == vars(env.params).keys()


@pytest.fixture(scope="module")
def learned():
    """A PPO whose observations and rewards are normalised, with its environment and hypers."""
    env = envs.make(CARTPOLE, COUNT)
    spec = normalize.normalized_spec(env.spec)
    agent = ppo.ppo(spec, networks.policy(spec, (8,)), networks.state_values(spec, (8,)), epochs=1, minibatches=1)
    agent = normalize.with_observation_norm(normalize.with_return_scaling(agent, env.spec), env.spec)
    return env, agent, ppo.Hypers()


@pytest.fixture(scope="module")
def saved(learned, tmp_path_factory):
    """Three runs of it in a file, and their states."""
    env, agent, hypers = learned
    states = [begun(agent, hypers, seed) for seed in range(3)]
    path = tmp_path_factory.mktemp("run") / export.POLICY
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    export.save_policy(path, agent, stacked, env, hypers, runs=3, name="ppo")
    return path, states


def test_normalisation_goes_along_and_nothing_else(saved):
    policy = export.load_policy(saved[0])
    assert {place for place in policy.arrays if "params" not in place} == {
        "state.acting[0].mean",
        "state.acting[0].variance",
    }
    assert all("actor" in place for place in policy.arrays if "params" in place)
    assert (policy.name, policy.runs, policy.hypers["discount"]) == ("ppo", 3, 0.99)
    assert "jax" in policy.versions


def test_every_run_acts_as_its_own_state(learned, saved):
    env, agent, hypers = learned
    path, states = saved
    observation, key = observations(env.spec.observation), jax.random.key(3)
    found = [by_policy(policy, observation, key) for policy in export.load_policies(path.parent)]
    for run, state in enumerate(states):
        assert same(found[run], acted(agent, state, hypers, observation, key))
        assert same(found[run], by_policy(export.load_policy(path, run), observation, key))
    for run in (3, -1, True):
        with pytest.raises(ValueError, match=r"run is .*; .* holds 3 runs, from 0 to 2"):
            export.load_policy(path, run)


def test_a_process_that_knows_no_agent_acts_the_same(learned, saved, tmp_path):
    env, agent, hypers = learned
    path, states = saved
    table = envs.make("CliffWalking-purerl", COUNT)
    learner = q_learning.q_learning(table.spec)
    other = export.save_policy(
        tmp_path / "q.zip", learner, begun(learner, q_learning.Hypers()), table, q_learning.Hypers()
    )
    observation, cells = np.asarray(observations(env.spec.observation)), [0, 7, 40]
    np.save(tmp_path / "observation.npy", observation)
    code = f"""
import sys, json, jax, numpy as np
from purerl import export
def both(path, observation):
    policy, key = export.load_policy(path), jax.random.key(3)
    return [policy(observation, key=key, greedy=greedy).tolist() for greedy in (True, False)]
found = both({str(path)!r}, np.load({str(tmp_path / "observation.npy")!r})) + both({str(other)!r}, {cells})
strange = [name for name in sys.modules if name.startswith(("purerl.agents", "purerl.networks", "gymnax"))]
print(json.dumps([found, strange]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    found, strange = json.loads(ran.stdout.splitlines()[-1])
    key = jax.random.key(3)
    expected = acted(agent, states[0], hypers, jnp.asarray(observation), key)
    expected += by_policy(export.load_policy(other), cells, key)
    assert strange == []
    assert found == [action.tolist() for action in expected]


def test_replay_is_not_stored(tmp_path):
    env = envs.make(CARTPOLE, COUNT)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (8,)))
    agent = replay.with_replay(learner, replay.uniform(env.spec, 99_999), batch_size=8)
    state = begun(agent, dqn.Hypers())
    path = export.save_policy(tmp_path / "policy.zip", agent, state, env, dqn.Hypers())
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > 3_000_000
    assert path.stat().st_size < 25_000


def reading(leaves, action=lambda state, observation: jnp.zeros(len(observation), jnp.int32)):
    """An agent whose state is `leaves`, and that acts by all of them."""
    return Agent(
        init=lambda key, hypers: leaves,
        start=no_memory,
        act=lambda key, state, memory, observation, hypers, *, greedy=False: (action(state, observation), memory),
        update=lambda key, state, rollout, hypers: (state, {}),
    )


def test_every_dtype_comes_back_to_the_bit(tmp_path):
    random = np.random.default_rng(0)
    dtypes = ["bfloat16", "float16", "float32", "int8", "uint8", "int32", "uint32", "bool"]
    leaves = {dtype: jnp.asarray(random.integers(0, 100, (3, 2)), dtype) for dtype in dtypes}
    leaves |= {"nan": jnp.array([jnp.nan, -0.0, jnp.inf], jnp.bfloat16), "none": jnp.zeros((0, 2))}

    def action(state, observation):
        total = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(state))
        return jnp.full(observation.shape[0], total, jnp.float32)

    env = envs.make(CARTPOLE, COUNT)
    path = export.save_policy(tmp_path / "policy.zip", reading(leaves, action), leaves, env, ())
    policy = export.load_policy(path)
    for name, leaf in leaves.items():
        found = policy.arrays[f"state['{name}']"]
        assert found.dtype == leaf.dtype
        assert np.asarray(found).tobytes() == np.asarray(leaf).tobytes()


def test_one_observation_a_batch_and_a_batch_of_any_size(saved):
    policy = export.load_policy(saved[0])
    observation = observations(SPEC.observation, 7)
    key = jax.random.key(0)
    many = policy(observation)
    assert many.shape == (7,)
    assert policy(observation[2]).shape == ()
    assert policy(observation[2]) == many[2]
    assert policy(observation[2].tolist()) == many[2]
    assert np.array_equal(policy(observation[:2]), many[:2])
    assert np.array_equal(jax.jit(policy)(observation), many)
    assert policy(observation[2], key=key).shape == ()
    drawn = {int(policy(observation[2], key=jax.random.key(number))) for number in range(40)}
    assert drawn == {0, 1}


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (np.zeros(5, np.float32), r"shape \(5,\); it takes \(4,\)"),
        (np.zeros((2, 3, 4), np.float32), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 4), np.float32), "N >= 1"),
        (np.float32(1.0), r"shape \(\)"),
        ([[1.0], [2.0, 3.0]], "takes an array of float32"),
        (np.zeros(4, complex), "is of complex128; it takes float32"),
        ("up", "it takes float32"),
    ],
)
def test_observations_that_do_not_fit(saved, observation, words):
    with pytest.raises(ValueError, match=words):
        export.load_policy(saved[0])(observation)


def test_keys_and_states_that_do_not_fit(saved, tmp_path):
    policy = export.load_policy(saved[0])
    observation = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="it takes a key"):
        policy(observation, greedy=False)
    with pytest.raises(TypeError, match="takes one key"):
        policy(observation, key=7)
    with pytest.raises(TypeError, match="takes those of threefry2x32"):
        policy(observation, key=jax.random.key(0, impl="rbg"))
    env = envs.make("CliffWalking-purerl", COUNT)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    path = export.save_policy(tmp_path / "policy.zip", agent, begun(agent, hypers), env, hypers)
    table = export.load_policy(path)
    with pytest.raises(ValueError, match="observation has -1 to 3; it takes 0 to 47"):
        table([3, -1])
    with pytest.raises(ValueError, match="is of float64; it takes int32"):
        table(1.5)


def test_what_cannot_be_saved(tmp_path):
    env = envs.make(CARTPOLE, COUNT)
    leaves = {"a": jnp.zeros(3)}
    path = tmp_path / "policy.zip"
    with pytest.raises(ValueError, match="agent has memory"):
        export.save_policy(path, reading(leaves)._replace(start=lambda count: jnp.zeros((count, 2))), leaves, env, ())
    fixed = reading(leaves, lambda state, observation: jnp.zeros(COUNT) + observation[:, 0])
    with pytest.raises(ValueError, match="for any number of observations"):
        export.save_policy(path, fixed, leaves, env, ())
    with pytest.raises(ValueError, match=r"state\['a'\] has shape \(3,\); with runs=2"):
        export.save_policy(path, reading(leaves), leaves, env, (), runs=2)
    with pytest.raises(ValueError, match="is a key"):
        export.save_policy(path, reading(leaves), {"a": jax.random.key(0)}, env, ())
    with pytest.raises(ValueError, match="runs is 0"):
        export.save_policy(path, reading(leaves), leaves, env, (), runs=0)
    assert not path.exists()


def test_every_damage_is_noticed(saved, tmp_path):
    content = saved[0].read_bytes()
    path = tmp_path / "policy.zip"
    random = np.random.default_rng(0)
    places = [*range(60), *random.integers(0, len(content), 300).tolist(), *range(len(content) - 120, len(content))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=str(path)):
            export.load_policy(path)
    for length in [*range(0, len(content), 501), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut short"):
            export.load_policy(path)
    path.write_bytes(content + b"\n")
    with pytest.raises(ValueError, match="cut short or damaged"):
        export.load_policy(path)


def test_members_taken_out_or_exchanged_are_noticed(saved, tmp_path):
    path = tmp_path / "policy.zip"
    with zipfile.ZipFile(saved[0]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    for left_out in members:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name != left_out:
                    archive.writestr(name, content)
            archive.comment = comment
        with pytest.raises(ValueError, match="checksum"):
            export.load_policy(path)


def test_other_files_formats_and_programs_are_told_apart(saved, tmp_path):
    path = tmp_path / "policy.zip"
    members = sealed.read(saved[0], kind="purerl policy", version=export.FORMAT)
    sealed.write(path, members, kind="purerl policy", version=export.FORMAT + 1)
    with pytest.raises(ValueError, match="of format 2; this version of purerl reads format 1"):
        export.load_policy(path)
    sealed.write(path, members, kind="purerl checkpoint", version=export.FORMAT)
    with pytest.raises(ValueError, match="is no purerl policy"):
        export.load_policy(path)
    sealed.write(path, members | {"greedy.mlir": b"of a later jax"}, kind="purerl policy", version=export.FORMAT)
    with pytest.raises(ValueError, match=r"was saved by jax .* and cannot be read by jax"):
        export.load_policy(path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        export.load_policy(tmp_path / "nowhere.zip")
