"""TRPO: its step seen from outside, by divergences written again; its critic's fit against a loop with optax."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agents.heads import ACTIONS, DIMENSIONS, FEATURES, KINDS, NUM_ENVS, apart, log_prob_of, networks_of, spec_of
from jax.flatten_util import ravel_pytree

from purerl import batches, trust_region
from purerl.actor_critic import Params
from purerl.agents import trpo
from purerl.base import Rollout, Transition, cast_hypers
from purerl.distributions import Gaussian

TIME = 16
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_torsos = pytest.mark.parametrize("shared", [False, True])
COUNTS = {"cg_iterations": 10, "max_backtracks": 10, "critic_epochs": 3, "critic_minibatches": 4}

GENERIC = trpo.Hypers(
    learning_rate=0.05,
    learning_rate_end_fraction=0.4,
    learning_rate_horizon=2.5,
    max_gradient_norm=0.7,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=0.1,
    discount=0.9,
    trace_decay=0.8,
    delta=0.02,
    damping=0.02,
    backtrack_coefficient=0.7,
)


def made(kind="categorical", shared=False, **counts):
    """An agent and its compiled update, made once."""
    return _made(kind, shared, **(COUNTS | counts))


@functools.cache
def _made(kind, shared, **counts):
    actor, critic, torso = networks_of(kind, shared)
    agent = trpo.trpo(spec_of(kind), actor, critic, torso=torso, **counts)
    return agent, jax.jit(agent.update)


@functools.cache
def begun(kind="categorical", shared=False):
    """A first state with networks far from where they usually begin, where all actions are about as likely."""
    state = made(kind, shared)[0].init(jax.random.key(0), cast_hypers(GENERIC))
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(100), len(leaves))
    noisy = [leaf + 0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return dataclasses.replace(state, params=structure.unflatten(noisy))


def record(kind="categorical", seed=0, num_envs=NUM_ENVS, **leaves):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(TIME, num_envs, *shape)), jnp.float32)  # noqa: E731
    action = rng.integers(ACTIONS, size=(TIME, num_envs)).astype(np.int32)
    steps = {
        "observation": draw(FEATURES),
        "action": draw(DIMENSIONS) if kind == "gaussian" else jnp.asarray(action),
        "reward": draw(),
        "terminated": jnp.asarray(rng.random((TIME, num_envs)) < 0.2),
        "truncated": jnp.asarray(rng.random((TIME, num_envs)) < 0.2),
        "next_observation": draw(FEATURES),
    }
    return Rollout(steps=Transition(**(steps | leaves)), memory=())


def changed(**numbers):
    return dataclasses.replace(GENERIC, **numbers)


def learn(experience, hypers=GENERIC, state=None, kind="categorical", shared=False, **counts):
    """The state before and after, and the metrics."""
    _, update = made(kind, shared, **counts)
    before = begun(kind, shared) if state is None else state
    return before, *update(jax.random.key(0), before, experience, cast_hypers(hypers))


# --- written again --------------------------------------------------------------------------------------------------


def features_of(kind, shared, params, observation):
    torso = networks_of(kind, shared)[2]
    return torso.apply(params.torso, observation) if torso else observation


def policy_of(kind, shared, params, observation):
    return networks_of(kind, shared)[0].apply(params.actor, features_of(kind, shared, params, observation))


def value_of(kind, shared, params, observation):
    return networks_of(kind, shared)[1].apply(params.critic, features_of(kind, shared, params, observation))


def kl_of(old, new):
    if isinstance(old, Gaussian):
        variance, other = jnp.exp(2 * old.log_deviation), jnp.exp(2 * new.log_deviation)
        parts = (jnp.log(other / variance) + (variance + (old.mean - new.mean) ** 2) / other - 1) / 2
    else:
        log_p, log_q = jax.nn.log_softmax(old.logits), jax.nn.log_softmax(new.logits)
        parts = jnp.exp(log_p) * (log_p - log_q)
    return jnp.mean(parts.sum(axis=-1))


def lambda_returns(steps, value, next_value, numbers):
    """By a loop; V(s) enters by nothing but the advantages, which are these less V(s)."""
    x = {name: np.asarray(leaf) for name, leaf in vars(steps).items()}
    found = np.zeros(value.shape)
    for environment in range(value.shape[1]):
        for time in reversed(range(len(value))):
            here, advantage_after = (time, environment), 0.0
            ended = x["terminated"][here] or x["truncated"][here]
            if time + 1 < len(value) and not ended:
                advantage_after = found[time + 1, environment] - value[time + 1, environment]
            after = next_value[here] + numbers.trace_decay * advantage_after
            found[here] = x["reward"][here] + (0.0 if x["terminated"][here] else numbers.discount * after)
    return found


def targets_of(kind, shared, params, steps, hypers):
    """Values [T, N] and their targets."""
    value, next_value = (
        np.float64(value_of(kind, shared, params, observation))
        for observation in (steps.observation, steps.next_observation)
    )
    return value, lambda_returns(steps, value, next_value, hypers)


def functions_of(kind, shared, params, steps, hypers):
    """Surrogate and mean KL(old‖new) as functions of parameters."""
    value, target = targets_of(kind, shared, params, steps, hypers)
    advantage = target - value
    advantage = jnp.asarray((advantage - advantage.mean()) / advantage.std(), jnp.float32)
    old = policy_of(kind, shared, params, steps.observation)

    def surrogate(new):
        log_ratio = log_prob_of(new, steps.action) - log_prob_of(old, steps.action)
        return jnp.mean(jnp.exp(log_ratio) * advantage)

    def of_parts(function):
        def by_parts(parts):
            torso, actor = parts
            new = Params(torso=torso, actor=actor, critic=())
            return function(policy_of(kind, shared, new, steps.observation))

        return by_parts

    return of_parts(surrogate), of_parts(lambda new: kl_of(old, new))


def parts_of(params):
    return params.torso, params.actor


# --- the step -------------------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(2)
@over_torsos
@over_kinds
def test_the_policy_is_within_the_region_and_better(kind, shared):
    for seed in range(3):
        experience = record(kind, seed)
        before, after, metrics = learn(experience, kind=kind, shared=shared)
        surrogate, mean_kl = functions_of(kind, shared, before.params, experience.steps, GENERIC)
        # By the parameters as they are in the end: the critic's fit has moved no policy.
        assert metrics["kl"] == pytest.approx(float(mean_kl(parts_of(after.params))), rel=2e-3, abs=1e-6)
        assert GENERIC.delta / 3 < metrics["kl"] < GENERIC.delta
        assert metrics["improvement"] == pytest.approx(float(surrogate(parts_of(after.params))), rel=2e-3, abs=1e-5)
        assert metrics["improvement"] > 0.01
        assert metrics["accepted"] == 1
        assert after.updates == 1


def test_the_entropy_is_that_of_the_policy_that_acted():
    for kind in KINDS:
        experience = record(kind)
        before, _, metrics = learn(experience, kind=kind)
        policy = policy_of(kind, False, before.params, experience.steps.observation)
        if kind == "categorical":
            p = np.float64(jax.nn.softmax(policy.logits))
            entropy = -np.sum(p * np.log(p), axis=-1)
        else:
            entropy = np.sum(np.float64(policy.log_deviation) + np.log(2 * np.pi * np.e) / 2, axis=-1)
        assert metrics["entropy"] == pytest.approx(entropy.mean(), rel=1e-4)


@pytest.mark.parametrize(("kind", "shared"), [("categorical", True), ("gaussian", False)])
def test_the_step_is_the_natural_one_by_derivatives_of_the_gradient_of_the_divergence(kind, shared):
    experience = record(kind)
    # So much damping, because after ten steps of conjugate gradient by a matrix that is hardly regular all is rounding.
    hypers = changed(damping=0.5)
    before, after, metrics = learn(experience, hypers, kind=kind, shared=shared)
    surrogate, mean_kl = functions_of(kind, shared, before.params, experience.steps, hypers)
    step = jax.jit(
        lambda parts: trust_region.natural_step(
            parts,
            surrogate,
            mean_kl,
            delta=hypers.delta,
            damping=hypers.damping,
            cg_iterations=COUNTS["cg_iterations"],
            max_backtracks=COUNTS["max_backtracks"],
            backtrack_coefficient=hypers.backtrack_coefficient,
        )
    )
    parts, info = step(parts_of(before.params))
    chex.assert_trees_all_close(parts, parts_of(after.params), atol=1e-4)
    assert apart(parts, parts_of(before.params)) > 0.01
    assert metrics["expected_improvement"] == pytest.approx(float(info.expected_improvement), rel=1e-3)
    assert metrics["backtracks"] == info.backtracks


@pytest.mark.parametrize(("kind", "shared"), [("categorical", True), ("gaussian", False)])
def test_products_with_the_fisher_matrix_are_those_of_the_dense_hessian(kind, shared):
    steps = record(kind).steps
    params = begun(kind, shared).params
    _, mean_kl = functions_of(kind, shared, params, steps, GENERIC)
    flat, unravel = ravel_pytree(parts_of(params))
    vector = jax.random.normal(jax.random.key(1), flat.shape)
    old = policy_of(kind, shared, params, steps.observation)

    def outputs(parts):
        torso, actor = parts
        return policy_of(kind, shared, Params(torso=torso, actor=actor, critic=()), steps.observation)

    product = trust_region.gauss_newton_product(outputs, lambda policy: jnp.mean(old.kl(policy)), unravel(flat))
    fast = ravel_pytree(product(unravel(vector)))[0]
    slow = ravel_pytree(trust_region.fisher_vector_product(mean_kl, unravel(flat), unravel(vector), damping=0.0))[0]
    dense = jax.jit(jax.hessian(lambda flat: mean_kl(unravel(flat))))(flat) @ vector
    assert jnp.abs(dense).max() > 0.1
    np.testing.assert_allclose(fast, dense, atol=2e-5)
    np.testing.assert_allclose(slow, dense, atol=2e-5)


def test_of_a_larger_region_more_is_used():
    kls = [float(learn(record(), changed(delta=delta))[2]["kl"]) for delta in (1e-4, 1e-3, 1e-2)]
    for kl, delta in zip(kls, (1e-4, 1e-3, 1e-2), strict=True):
        assert delta / 3 < kl < delta


# --- no step --------------------------------------------------------------------------------------------------------


@over_torsos
@pytest.mark.parametrize("reason", ["no gradient", "no room"])
def test_where_nothing_is_acceptable_the_policy_stays_bit_for_bit_and_the_critic_learns(reason, shared):
    # All advantages are 1: the discount is 0, and so are all values.
    even = {"reward": jnp.ones((TIME, NUM_ENVS))} if reason == "no gradient" else {}
    hypers = changed(discount=0.0) if even else changed(delta=0.0)
    state = begun(shared=shared)
    if even:
        nothing = jax.tree.map(jnp.zeros_like, state.params.critic)
        state = dataclasses.replace(state, params=dataclasses.replace(state.params, critic=nothing))
    before, after, metrics = learn(record(**even), hypers, state, shared=shared)
    chex.assert_trees_all_equal(parts_of(after.params), parts_of(before.params))
    assert apart(after.params.critic, before.params.critic) > 0.01
    assert metrics["accepted"] == metrics["kl"] == metrics["improvement"] == 0
    assert all(np.isfinite(number) for number in metrics.values())
    assert metrics["value_loss"] > 0


# --- the critic -----------------------------------------------------------------------------------------------------


class Fit:
    """The critic's passes, one minibatch after the other."""

    def __init__(self, kind, shared, params, hypers):
        self.kind, self.shared, self.hypers = kind, shared, hypers
        self.critic = params.critic
        self.moments = self.optimizer(0.0).init(self.critic)
        self.updates, self.norms = 0, []
        self.step_of = jax.jit(self.step)

    def optimizer(self, rate):
        h = self.hypers
        adam = optax.scale_by_adam(b1=h.adam_b1, b2=h.adam_b2, eps=h.adam_eps)
        return optax.chain(optax.clip_by_global_norm(h.max_gradient_norm), adam, optax.scale(-rate))

    def step(self, params, moments, features, target, rate):
        critic = networks_of(self.kind, self.shared)[1]

        def loss(params):
            return jnp.mean((critic.apply(params, features) - target) ** 2) / 2

        error, gradient = jax.value_and_grad(loss)(params)
        step, moments = self.optimizer(rate).update(gradient, moments)
        return optax.apply_updates(params, step), moments, error, optax.global_norm(gradient)

    def update(self, key, before, after, steps):
        """Return the mean loss of the last pass; `before` and `after` are the parameters, of which a torso may move."""
        h = self.hypers
        _, target = targets_of(self.kind, self.shared, before, steps, h)
        features = features_of(self.kind, self.shared, after, steps.observation).reshape(target.size, -1)
        target = np.float32(target.reshape(-1))
        gone = min(1.0, self.updates / h.learning_rate_horizon)
        rate = h.learning_rate * (1 - gone + gone * h.learning_rate_end_fraction)
        for one in jax.random.split(key, COUNTS["critic_epochs"]):
            losses = []
            for part in np.split(batches.permutation(one, target.size), COUNTS["critic_minibatches"]):
                found = self.step_of(self.critic, self.moments, features[part], target[part], rate)
                self.critic, self.moments, loss, norm = found
                losses.append(float(loss))
                self.norms.append(float(norm))
        self.updates += 1
        return np.mean(losses)


@over_torsos
@over_kinds
def test_the_critic_is_fitted_as_in_the_loop(kind, shared):
    _, update = made(kind, shared)
    state = begun(kind, shared)
    fit = Fit(kind, shared, state.params, GENERIC)
    for number in range(3):
        experience, key = record(kind, number), jax.random.key(number)
        before = state.params
        state, metrics = update(key, state, experience, cast_hypers(GENERIC))
        loss = fit.update(key, before, state.params, experience.steps)
        chex.assert_trees_all_close(state.params.critic, fit.critic, atol=2e-5)
        assert metrics["value_loss"] == pytest.approx(loss, rel=1e-4)
        assert apart(state.params.critic, before.critic) > 0.01
    clipped = np.array(fit.norms) > GENERIC.max_gradient_norm
    assert clipped.any()
    assert not clipped.all()


@pytest.mark.thorough
def test_more_passes_fit_the_critic_better():
    losses = [float(learn(record(), critic_epochs=epochs)[2]["value_loss"]) for epochs in (1, 3)]
    assert losses[1] < 0.95 * losses[0]


def test_the_policy_does_not_depend_on_how_the_critic_is_fitted():
    one = learn(record())[1].params
    for other in (learn(record(), changed(learning_rate=0.0)), learn(record(), critic_epochs=1)):
        chex.assert_trees_all_close(one.actor, other[1].params.actor, atol=1e-6)
        assert apart(one.critic, other[1].params.critic) > 1e-3


@over_torsos
def test_a_zero_rate_leaves_the_critic_as_it_is(shared):
    before, after, metrics = learn(record(), changed(learning_rate=0.0), shared=shared)
    chex.assert_trees_all_equal(after.params.critic, before.params.critic)
    assert metrics["accepted"] == 1


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_lanes_are_those_of_single_updates():
    agent, alone = made("gaussian")
    points = [
        cast_hypers(changed(delta=delta, trace_decay=decay, damping=0.5))
        for delta, decay in ((0.0, 0.8), (0.02, 1.0), (0.3, 0.5))
    ]
    state, key, experience, traces = begun("gaussian"), jax.random.key(0), record("gaussian"), []

    @jax.jit
    @jax.vmap
    def together(hypers):
        traces.append(hypers)
        return agent.update(key, state, experience, hypers)

    after, metrics = together(jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
    np.testing.assert_array_equal(metrics["accepted"], [0, 1, 1])
    for leaf, before in zip(jax.tree.leaves(after.params.actor), jax.tree.leaves(state.params.actor), strict=True):
        np.testing.assert_array_equal(leaf[0], before)  # though the others went on
    for lane, hypers in enumerate(points):
        mine = jax.tree.map(lambda leaf: leaf[lane], (after, metrics))  # noqa: B023
        chex.assert_trees_all_close(mine, alone(key, state, experience, hypers), atol=1e-4, rtol=1e-3)
    assert len(traces) == 1


def test_counts_below_one_are_refused_by_name():
    actor, critic, _ = networks_of("categorical", False)
    for name in COUNTS:
        for count in (0, -1, True):
            with pytest.raises(ValueError, match=f"{name} is {count}; it takes a whole number of at least 1"):
                trpo.trpo(spec_of("categorical"), actor, critic, **{name: count})


def test_minibatches_that_do_not_divide_a_rollout_are_refused():
    with pytest.raises(ValueError, match="critic_minibatches is 5, which does not divide the 64 steps of a rollout"):
        learn(record(), critic_minibatches=5)


def test_a_rollout_of_another_number_of_environments_is_refused():
    with pytest.raises(ValueError, match=r"trpo was made for 4 environments .* handed a rollout of 6"):
        learn(record(num_envs=6))
