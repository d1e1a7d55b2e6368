"""Orders that are to be random, and what a policy and a critic share."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import returns
from purerl.actor_critic import ActorCritic, Params
from purerl.base import Box, Discrete, Network, Spec, Transition
from purerl.batches import flat, permutation, shuffled
from purerl.distributions import Categorical, Gaussian

TIME, NUM_ENVS, FEATURES, ACTIONS = 5, 3, 2, 4
SPEC = Spec(
    observation=Box(shape=(FEATURES,), dtype=np.float32, low=-np.inf, high=np.inf),
    action=Discrete(ACTIONS),
    num_envs=NUM_ENVS,
)

# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 512, 1000, 2**16 - 1, 2**16, 2**16 + 1])
def test_every_place_is_there_once(size):
    for seed in range(3):
        order = permutation(jax.random.key(seed), size)
        assert order.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [512, 1000, 2**16, 2**16 + 1])
def test_keys_have_orders_of_their_own(size):
    one, again, other = (np.asarray(permutation(jax.random.key(seed), size)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.mean(one == other) < 0.02
    assert np.mean(one == np.arange(size)) < 0.02


def many(size, count):
    return np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, size)))(jax.random.split(jax.random.key(7), count)))


@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_all_orders_are_equally_likely(size):
    orders = many(size, 36_000)
    cells = [orders @ size ** np.arange(size) == order @ size ** np.arange(size) for order in _all_orders(size)]
    assert stats.chisquare(np.sum(cells, axis=1)).pvalue > 1e-4


def _all_orders(size):
    return [np.array(order) for order in itertools.permutations(range(size))]


@pytest.mark.parametrize("size", [6, 64, 1000])
def test_elements_land_anywhere_and_pairs_in_either_order(size):
    orders = many(size, 2000)
    places = np.argsort(orders, axis=-1)
    for element in (0, size // 2, size - 1):
        counts = np.bincount(places[:, element] * 5 // size, minlength=5)
        chances = np.bincount(np.arange(size) * 5 // size) / size
        assert stats.chisquare(counts, len(orders) * chances).pvalue > 1e-4
    for one, other in ((0, 1), (0, size - 1), (size // 2 - 1, size // 2)):
        first = np.sum(places[:, one] < places[:, other])
        assert stats.binomtest(int(first), len(orders)).pvalue > 1e-4
    # Neighbours in the new order go up as often as down.
    ups = np.mean(orders[:, 1:] > orders[:, :-1])
    assert ups == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / orders.size) + 1e-6)


@pytest.mark.parametrize("size", [7, 2**16, 2**16 + 1])
def test_under_vmap_orders_are_those_of_single_keys(size):
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: permutation(key, size))(keys)
    for order, key in zip(together, keys, strict=True):
        np.testing.assert_array_equal(order, permutation(key, size))


@pytest.mark.parametrize("minibatches", [1, 3, 12])
def test_a_batch_is_cut_into_minibatches_whose_rows_stay_together(minibatches):
    batch = {"number": jnp.arange(12), "row": 10.0 * jnp.arange(12)[:, None] + jnp.arange(3)}
    cut = jax.jit(shuffled, static_argnames="minibatches")(jax.random.key(0), batch, minibatches=minibatches)
    assert cut["number"].shape == (minibatches, 12 // minibatches)
    assert cut["row"].shape == (minibatches, 12 // minibatches, 3)
    np.testing.assert_array_equal(cut["row"], 10.0 * cut["number"][..., None] + np.arange(3))
    np.testing.assert_array_equal(np.sort(np.ravel(cut["number"])), np.arange(12))
    np.testing.assert_array_equal(np.ravel(cut["number"]), permutation(jax.random.key(0), 12))
    assert np.any(np.ravel(cut["number"]) != np.arange(12))


def test_rollouts_are_laid_out_time_by_time():
    number = jnp.arange(TIME * NUM_ENVS).reshape(TIME, NUM_ENVS)
    laid = flat({"one": number, "two": jnp.stack([number, -number], axis=-1)})
    np.testing.assert_array_equal(laid["one"], np.arange(TIME * NUM_ENVS))
    np.testing.assert_array_equal(laid["two"], np.stack([laid["one"], -laid["one"]], axis=-1))


# --- networks -------------------------------------------------------------------------------------------------------


def spied(outputs, seen, calls):
    """A linear network that keeps what its `init` is given, and the shapes on which it is applied."""

    def init(key, observation):
        seen.append((np.asarray(jax.random.key_data(key)).tolist(), observation.shape))
        return jax.random.normal(key, (*observation.shape, outputs))

    def apply(params, observation):
        calls.append(observation.shape)
        return observation @ params

    return Network(init=init, apply=apply)


def with_head(network, head):
    return Network(init=network.init, apply=lambda params, observation: head(network.apply(params, observation)))


def made(with_torso, head=Categorical, with_critic=True):
    """An actor-critic, and what is kept by name: `seen` and `calls` as above."""
    kept = SimpleNamespace(seen={}, calls={})

    def part(name, outputs, head):
        kept.seen[name], kept.calls[name] = [], []
        return with_head(spied(outputs, kept.seen[name], kept.calls[name]), head)

    network = ActorCritic(
        actor=part("actor", ACTIONS, lambda outputs: head(logits=outputs) if head is Categorical else head(outputs)),
        critic=part("critic", 1, lambda outputs: outputs[..., 0]) if with_critic else None,
        torso=part("torso", 7, jnp.tanh) if with_torso else None,
    )
    return network, kept


def transitions(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(TIME, NUM_ENVS, *shape)), jnp.float32)  # noqa: E731
    return Transition(
        observation=draw(FEATURES),
        action=jnp.asarray(rng.integers(ACTIONS, size=(TIME, NUM_ENVS)), jnp.int32),
        reward=draw(),
        terminated=jnp.asarray(rng.random((TIME, NUM_ENVS)) < 0.3),
        truncated=jnp.asarray(rng.random((TIME, NUM_ENVS)) < 0.3),
        next_observation=draw(FEATURES),
    )


def test_parts_begin_with_keys_of_their_own_and_heads_with_features():
    network, kept = made(with_torso=True)
    params = network.init(jax.random.key(0), SPEC)
    keys = [seen[0][0] for seen in kept.seen.values()]
    assert all(len(seen) == 1 for seen in kept.seen.values())
    assert len({tuple(key) for key in keys}) == 3
    assert {name: seen[0][1] for name, seen in kept.seen.items()} == {
        "torso": (FEATURES,),
        "actor": (7,),
        "critic": (7,),
    }
    assert (params.torso.shape, params.actor.shape, params.critic.shape) == ((FEATURES, 7), (7, ACTIONS), (7, 1))
    assert np.all(network.init(jax.random.key(1), SPEC).actor != params.actor)


def test_what_is_not_there_has_no_parameters():
    network, _ = made(with_torso=False, with_critic=False)
    params = network.init(jax.random.key(0), SPEC)
    assert params.torso == params.critic == ()
    assert params.actor.shape == (FEATURES, ACTIONS)


@pytest.mark.parametrize("with_torso", [False, True])
def test_policy_and_value_read_the_features_if_there_are_any(with_torso):
    network, kept = made(with_torso)
    params, observation = network.init(jax.random.key(0), SPEC), transitions().observation
    features = np.tanh(observation @ params.torso) if with_torso else observation
    np.testing.assert_allclose(network.features(params.torso, observation), features, atol=1e-6)
    kept.calls.get("torso", []).clear()
    policy, value = network.both(params, observation)
    assert len(kept.calls.get("torso", [])) == with_torso  # once for both
    for one in (policy, network.policy(params, observation)):
        np.testing.assert_allclose(one.logits, features @ params.actor, atol=1e-5)
    for one in (value, network.value(params, observation)):
        np.testing.assert_allclose(one, (features @ params.critic)[..., 0], atol=1e-5)


@pytest.mark.parametrize("with_torso", [False, True])
def test_advantages_are_those_of_values_computed_apart_by_one_pass_of_the_critic(with_torso):
    network, kept = made(with_torso)
    params, steps = network.init(jax.random.key(0), SPEC), transitions()
    discount, trace_decay = jnp.float32(0.9), jnp.float32(0.7)
    for calls in kept.calls.values():
        calls.clear()
    advantage, value = network.advantages(params, steps, discount, trace_decay)
    assert [shape[:2] for shape in kept.calls["critic"]] == [(2 * TIME, NUM_ENVS)]
    assert len(kept.calls.get("torso", [])) == with_torso
    assert kept.calls["actor"] == []
    of_observation, of_successor = (
        network.value(params, observation) for observation in (steps.observation, steps.next_observation)
    )
    expected = returns.gae(
        steps.reward, steps.terminated, steps.truncated, of_observation, of_successor, discount, trace_decay
    )
    np.testing.assert_allclose(value, of_observation, atol=1e-6)
    np.testing.assert_allclose(advantage, expected, atol=1e-5)
    assert np.abs(of_observation - of_successor).max() > 0.1


def test_observations_may_be_of_several_parts():
    critic = Network(init=None, apply=lambda params, observation: observation["a"] + observation["b"][..., 0])
    steps = transitions()

    def split(observation):
        return {"a": observation[..., 0], "b": observation[..., 1:]}

    summed = ActorCritic(None, Network(None, lambda params, observation: jnp.sum(observation, axis=-1)))
    parts = dataclasses.replace(
        steps, observation=split(steps.observation), next_observation=split(steps.next_observation)
    )
    numbers = jnp.float32(0.9), jnp.float32(0.7)
    params = Params(torso=(), actor=(), critic=())
    for one, other in zip(
        ActorCritic(None, critic).advantages(params, parts, *numbers),
        summed.advantages(params, steps, *numbers),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- acting ---------------------------------------------------------------------------------------------------------


def gaussian(outputs):
    return Gaussian(mean=outputs, log_deviation=jnp.zeros_like(outputs))


@pytest.mark.parametrize("head", [Categorical, gaussian])
def test_acting_greedily_is_the_mode_and_otherwise_a_draw_by_the_key(head):
    network, _ = made(with_torso=True, head=head)
    params = network.init(jax.random.key(0), SPEC)
    state, observation = SimpleNamespace(params=params), transitions().observation[0]
    act = network.act()
    outputs = np.tanh(observation @ params.torso) @ params.actor
    memory = jnp.arange(NUM_ENVS)
    for seed in range(2):
        action, after = act(jax.random.key(seed), state, memory, observation, None, greedy=True)
        np.testing.assert_allclose(action, outputs.argmax(axis=-1) if head is Categorical else outputs, atol=1e-5)
        np.testing.assert_array_equal(after, memory)
    policy = network.policy(params, observation)
    draws = []
    for seed in range(20):
        action, after = act(jax.random.key(seed), state, memory, observation, None)
        np.testing.assert_array_equal(action, policy.sample(jax.random.key(seed)))
        np.testing.assert_array_equal(after, memory)
        draws.append(action)
    assert np.any(np.stack(draws) != draws[0])
