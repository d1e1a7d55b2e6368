"""PPO against its losses written again, by rlax where it has them, a loop over steps for advantages, and optax."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax
from agents.heads import ACTIONS, DIMENSIONS, FEATURES, KINDS, NUM_ENVS, apart, log_prob_of, networks_of, spec_of

from purerl import batches, envs, networks, rollout
from purerl.agents import ppo
from purerl.base import Network, Rollout, Transition, cast_hypers, pytree_dataclass
from purerl.distributions import Categorical, Gaussian

TIME = 6
over_kinds = pytest.mark.parametrize("kind", KINDS)

# Every number counts: that each limit bites is seen to below. Not so small an epsilon, because Adam by itself is blind
# to a factor of all gradients.
GENERIC = ppo.Hypers(
    learning_rate=0.1,
    learning_rate_end_fraction=0.3,
    learning_rate_horizon=2.5,
    max_gradient_norm=0.4,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=0.1,
    discount=0.9,
    trace_decay=0.8,
    clip=0.1,
    value_clip=0.1,
    value_weight=0.7,
    entropy_weight=0.05,
    max_kl=100.0,
    rate_adaptation=1.5,
    target_kl=0.01,
)


def made(kind="categorical", shared=False, *, epochs=2, minibatches=2, normalize_advantages=True):
    """An agent and its compiled update, made once."""
    return _made(kind, shared, epochs, minibatches, normalize_advantages)


@functools.cache
def _made(kind, shared, epochs, minibatches, normalize_advantages):
    actor, critic, torso = networks_of(kind, shared)
    agent = ppo.ppo(
        spec_of(kind),
        actor,
        critic,
        torso=torso,
        epochs=epochs,
        minibatches=minibatches,
        normalize_advantages=normalize_advantages,
    )
    return agent, jax.jit(agent.update)


@functools.cache
def begun(kind="categorical", shared=False):
    return moved(made(kind, shared)[0])


def moved(agent):
    """A first state with networks far from where they usually begin, where all actions are about as likely."""
    state = agent.init(jax.random.key(0), cast_hypers(GENERIC))
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(100), len(leaves))
    noisy = [leaf + 0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return dataclasses.replace(state, params=structure.unflatten(noisy))


def record(kind="categorical", seed=0, num_envs=NUM_ENVS):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(TIME, num_envs, *shape)), jnp.float32)  # noqa: E731
    action = rng.integers(ACTIONS, size=(TIME, num_envs)).astype(np.int32)
    steps = Transition(
        observation=draw(FEATURES),
        action=draw(DIMENSIONS) if kind == "gaussian" else jnp.asarray(action),
        reward=draw(),
        terminated=jnp.asarray(rng.random((TIME, num_envs)) < 0.3),
        truncated=jnp.asarray(rng.random((TIME, num_envs)) < 0.3),
        next_observation=draw(FEATURES),
    )
    return Rollout(steps=steps, memory=())


def learn(experience, hypers=GENERIC, state=None, kind="categorical", shared=False, **options):
    _, update = made(kind, shared, **options)
    state = begun(kind, shared) if state is None else state
    return update(jax.random.key(0), state, experience, cast_hypers(hypers))


def changed(**numbers):
    return dataclasses.replace(GENERIC, **numbers)


# --- written again --------------------------------------------------------------------------------------------------


def entropy_of(policy):
    if isinstance(policy, Gaussian):
        variance = jnp.exp(2 * policy.log_deviation)
        return jnp.mean(jnp.sum(jnp.log(2 * np.pi * np.e * variance) / 2, axis=-1))
    return -rlax.entropy_loss(policy.logits, jnp.ones(len(policy.logits)))


def advantages_of(steps, value, next_value, discount, trace_decay):
    x = {name: np.asarray(leaf) for name, leaf in vars(steps).items()}
    found = np.zeros(value.shape)
    for environment in range(value.shape[1]):
        following = 0.0
        for time in reversed(range(len(value))):
            here = time, environment
            after = 0.0 if x["terminated"][here] else discount * next_value[here]
            following *= 0.0 if x["terminated"][here] or x["truncated"][here] else discount * trace_decay
            following += x["reward"][here] + after - value[here]
            found[here] = following
    return found


class Book:
    """The algorithm, one minibatch after the other; what each limit bit is counted."""

    def __init__(self, state, hypers, kind, shared, normalize=True):
        self.actor, self.critic, self.torso = networks_of(kind, shared)
        self.numbers = {name: float(number) for name, number in dataclasses.asdict(hypers).items()}
        self.normalize = normalize
        self.params = state.params
        self.moments = self.optimizer(0.0).init(self.params)
        self.updates, self.rate_scale = 0, 1.0
        self.norms, self.ratios_bitten, self.values_bitten = [], 0, 0
        self.outputs_of, self.step_of = jax.jit(self.outputs), jax.jit(self.step)

    def optimizer(self, rate):
        h = self.numbers
        adam = optax.scale_by_adam(b1=h["adam_b1"], b2=h["adam_b2"], eps=h["adam_eps"])
        return optax.chain(optax.clip_by_global_norm(h["max_gradient_norm"]), adam, optax.scale(-rate))

    def outputs(self, params, observation):
        features = self.torso.apply(params.torso, observation) if self.torso else observation
        return self.actor.apply(params.actor, features), self.critic.apply(params.critic, features)

    def loss(self, params, batch):
        h, (policy, value) = self.numbers, self.outputs(params, batch["observation"])
        advantage = batch["advantage"]
        if self.normalize:
            advantage = (advantage - advantage.mean()) / jnp.sqrt(jnp.mean((advantage - advantage.mean()) ** 2))
        ratio = jnp.exp(log_prob_of(policy, batch["action"]) - batch["log_prob"])
        surrogate = rlax.clipped_surrogate_pg_loss(ratio, advantage, h["clip"])
        moved = batch["value"] + jnp.clip(value - batch["value"], -h["value_clip"], h["value_clip"])
        losses = (value - batch["target"]) ** 2 / 2, (moved - batch["target"]) ** 2 / 2
        entropy = entropy_of(policy)
        value_loss = jnp.mean(jnp.maximum(*losses))
        metrics = {
            "surrogate": -surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": jnp.mean(ratio - 1 - jnp.log(ratio)),
            "clipped": jnp.mean(jnp.abs(ratio - 1) > h["clip"]),
        }
        bitten = jnp.sum(jnp.abs(ratio - 1) > h["clip"]), jnp.sum(losses[1] > losses[0] + 1e-4)
        return surrogate + h["value_weight"] * value_loss - h["entropy_weight"] * entropy, (metrics, bitten)

    def update(self, key, steps, epochs, minibatches):
        h = self.numbers
        policy, value = self.outputs_of(self.params, steps.observation)
        _, next_value = self.outputs_of(self.params, steps.next_observation)
        advantage = advantages_of(steps, np.float64(value), np.float64(next_value), h["discount"], h["trace_decay"])
        batch = {
            "observation": steps.observation,
            "action": steps.action,
            "log_prob": log_prob_of(policy, steps.action),
            "value": value,
            "advantage": advantage,
            "target": advantage + value,
        }
        rows = {name: np.asarray(leaf).reshape(value.size, *leaf.shape[2:]) for name, leaf in batch.items()}
        rows |= {name: np.float32(rows[name]) for name in ("advantage", "target")}
        gone = min(1.0, self.updates / h["learning_rate_horizon"])
        rate = h["learning_rate"] * (1 - gone + gone * h["learning_rate_end_fraction"])
        for epoch in range(epochs):
            order = np.asarray(batches.permutation(jax.random.fold_in(key, epoch), value.size))
            found = [
                self.descend({name: leaf[part] for name, leaf in rows.items()}, rate)
                for part in np.split(order, minibatches)
            ]
        metrics = {name: np.mean([one[name] for one in found]) for name in found[0]}
        if metrics["kl"] > 2 * h["target_kl"]:
            self.rate_scale /= h["rate_adaptation"]
        elif metrics["kl"] < h["target_kl"] / 2:
            self.rate_scale *= h["rate_adaptation"]
        self.updates += 1
        return metrics | {"epochs": epochs, "rate_scale": self.rate_scale}

    def step(self, params, moments, batch, rate):
        gradient, (metrics, bitten) = jax.grad(self.loss, has_aux=True)(params, batch)
        step, moments = self.optimizer(rate).update(gradient, moments)
        return optax.apply_updates(params, step), moments, metrics, (optax.global_norm(gradient), *bitten)

    def descend(self, batch, rate):
        found = self.step_of(self.params, self.moments, batch, rate * self.rate_scale)
        self.params, self.moments, metrics, (norm, ratios, values) = found
        self.norms.append(float(norm))
        self.ratios_bitten += int(ratios)
        self.values_bitten += int(values)
        return metrics


def assert_updates_are_those_of_the_book(kind, shared, normalize):
    """Return the book after some updates that agree with it."""
    hypers = cast_hypers(GENERIC)
    _, update = made(kind, shared, normalize_advantages=normalize)
    state = begun(kind, shared)
    book = Book(state, hypers, kind, shared, normalize)
    for number in range(3):
        experience, key = record(kind, seed=number), jax.random.key(number)
        expected = book.update(key, experience.steps, 2, 2)
        state, metrics = update(key, state, experience, hypers)
        assert set(metrics) == set(expected)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(float(value), rel=1e-3, abs=2e-5), name
        chex.assert_trees_all_close(state.params, book.params, atol=2e-5, rtol=1e-4)
        assert state.updates == number + 1
        assert state.rate_scale == pytest.approx(book.rate_scale)
    return book


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("kind", "shared", "normalize"),
    [
        ("categorical", False, True),
        ("categorical", True, True),
        ("gaussian", False, False),
        ("gaussian", True, True),
    ],
)
def test_updates_are_those_of_the_book(kind, shared, normalize):
    book = assert_updates_are_those_of_the_book(kind, shared, normalize)
    assert book.ratios_bitten > 5
    assert book.values_bitten > 5
    assert sum(norm > GENERIC.max_gradient_norm for norm in book.norms) > 5
    assert book.rate_scale != 1


def test_the_experience_holds_all_that_can_happen():
    steps = record().steps
    assert len(set(zip(np.ravel(steps.terminated), np.ravel(steps.truncated), strict=True))) == 4


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in vars(GENERIC)
        if name not in ("learning_rate_end_fraction", "learning_rate_horizon", "max_kl", "rate_adaptation", "target_kl")
    ],
)
def test_every_number_of_a_first_update_counts(name):
    usual, other = (
        learn(record(), hypers)[0].params for hypers in (GENERIC, changed(**{name: 0.5 * getattr(GENERIC, name)}))
    )
    assert apart(usual, other) > 1e-4


# --- the policy that acted ------------------------------------------------------------------------------------------


def watched(network, kind, seen):
    """The network, with a policy that keeps the log-probabilities of whole rollouts [T, N], not of minibatches."""
    base = {"categorical": Categorical, "gaussian": Gaussian}[kind]

    @pytree_dataclass
    class Watched(base):
        def log_prob(self, action):
            found = super().log_prob(action)
            if found.ndim == 2:
                jax.debug.callback(seen.append, found)
            return found

    return Network(
        init=network.init, apply=lambda params, observation: Watched(**vars(network.apply(params, observation)))
    )


@pytest.mark.parametrize(("name", "kind"), [("CartPole-v1", "categorical"), ("Pendulum-v1", "gaussian")])
def test_in_the_first_pass_nothing_has_moved_from_the_policy_that_acted(name, kind):
    env, seen = envs.make(name, NUM_ENVS), []
    actor, critic = networks.policy(env.spec, (5,)), networks.state_values(env.spec, (5,))
    agent = ppo.ppo(env.spec, watched(actor, kind, seen), critic, epochs=1, minibatches=1)
    hypers = cast_hypers(changed(clip=1e-6))
    state = moved(agent)
    keys = rollout.step_keys(jax.random.key(1), 10)
    episodes = rollout.start(jax.random.key(2), agent, env, env.params)
    unroll = jax.jit(lambda state: rollout.unroll(keys, agent, state, env, env.params, episodes, hypers)[1])
    experience = unroll(state)
    after, metrics = jax.jit(agent.update)(jax.random.key(0), state, experience, hypers)
    assert metrics["kl"] < 1e-10
    assert metrics["clipped"] == 0
    assert abs(metrics["surrogate"]) < 1e-5  # advantages are of mean 0
    assert apart(after.params, state.params) > 1e-3
    # What it divides by is what acted, as it was seen a step at a time.
    jax.effects_barrier()
    (learned_from,) = seen
    one = jax.jit(lambda observation, action: log_prob_of(actor.apply(state.params.actor, observation), action))
    each = [
        one(observation, action)
        for observation, action in zip(experience.steps.observation, experience.steps.action, strict=True)
    ]
    np.testing.assert_allclose(learned_from, each, atol=1e-6)
    assert np.std(each) > 0.1


# --- how long, and how fast -----------------------------------------------------------------------------------------


def test_epochs_end_once_the_policy_is_too_far():
    few, many = changed(max_kl=1e-9), changed(max_kl=100.0)
    stopped, metrics = learn(record(), few, epochs=4)
    once, of_one = learn(record(), many, epochs=1)
    assert metrics["epochs"] == 1
    assert metrics["kl"] == of_one["kl"] > 1e-4
    chex.assert_trees_all_close(stopped, once, atol=1e-7)
    on, metrics = learn(record(), many, epochs=4)
    assert metrics["epochs"] == 4
    assert apart(on.params, once.params) > 0.01


def test_epochs_go_on_up_to_the_divergence_allowed():
    kls = [float(learn(record(), epochs=epochs)[1]["kl"]) for epochs in (1, 2)]
    assert kls[1] > kls[0]
    for done, kl in enumerate(kls, 1):
        assert learn(record(), changed(max_kl=1.01 * kl), epochs=4)[1]["epochs"] == done + 1
        assert learn(record(), changed(max_kl=0.99 * kl), epochs=4)[1]["epochs"] == done


def test_the_rate_goes_against_the_divergence():
    kl = float(learn(record(), changed(rate_adaptation=1.0))[1]["kl"])

    def scale(target_kl, rate_adaptation=1.5, before=1.0):
        hypers = changed(target_kl=target_kl, rate_adaptation=rate_adaptation)
        state = dataclasses.replace(begun(), rate_scale=jnp.float32(before))
        state, metrics = learn(record(), hypers, state)
        assert metrics["rate_scale"] == state.rate_scale
        return float(state.rate_scale)

    assert scale(kl / 2.02) == scale(1e-9) == pytest.approx(1 / 1.5)
    assert scale(kl / 1.98) == scale(kl) == scale(kl * 1.98) == 1
    assert scale(kl * 2.02) == scale(1e9) == pytest.approx(1.5)
    assert scale(1e-9, 1.0) == scale(1e9, 1.0) == 1
    assert scale(1e9, before=0.5) == pytest.approx(0.75)
    # And not without end.
    assert scale(1e9, before=90.0) == 100
    assert scale(1e-9, before=0.011) == pytest.approx(0.01)


def test_steps_are_as_long_as_the_adapted_rate_says():
    def move(scale):
        before = dataclasses.replace(begun(), rate_scale=jnp.float32(scale))
        after, _ = learn(record(), state=before, epochs=1, minibatches=1)
        return jax.tree.map(jnp.subtract, after.params, before.params)

    once, thrice = move(1.0), move(3.0)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(once)) > 0.01
    chex.assert_trees_all_close(thrice, jax.tree.map(lambda leaf: 3.0 * leaf, once), atol=1e-6)


def test_a_zero_rate_changes_no_parameter():
    still = changed(learning_rate=0.0)
    after, metrics = learn(record(), still)
    chex.assert_trees_all_equal(after.params, begun().params)
    assert metrics["kl"] < 1e-10
    assert after.updates == 1


def test_a_large_clip_of_values_is_none():
    wide, wider, narrow = (learn(record(), changed(value_clip=clip))[0].params for clip in (1e3, 1e6, 0.1))
    assert apart(wide, wider) < 1e-6
    assert apart(wide, narrow) > 1e-4


# --- the program ----------------------------------------------------------------------------------------------------


def test_lanes_are_those_of_single_updates_where_some_stopped_before_others():
    agent, alone = made(epochs=4)
    kl = float(learn(record(), epochs=2)[1]["kl"])
    state, key, traces = begun(), jax.random.key(0), []

    @jax.jit
    @jax.vmap
    def together(hypers):
        traces.append(hypers)
        return agent.update(key, state, record(), hypers)

    for clips in ((0.1, 0.1, 0.1, 0.1), (0.05, 0.3, 0.1, 0.02)):
        limits = 1e-9, 100.0, 0.99 * kl, 100.0
        points = [cast_hypers(changed(max_kl=limit, clip=clip)) for limit, clip in zip(limits, clips, strict=True)]
        after, metrics = together(jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
        np.testing.assert_array_equal(metrics["epochs"], [1, 4, 2, 4])
        lanes = [jax.tree.map(lambda leaf: leaf[lane], (after, metrics)) for lane in range(4)]  # noqa: B023
        for mine, hypers in zip(lanes, points, strict=True):
            chex.assert_trees_all_close(mine, alone(key, state, record(), hypers), atol=1e-5, rtol=1e-4)
        assert (apart(lanes[1][0].params, lanes[3][0].params) > 1e-3) == (clips[1] != clips[3])
    assert len(traces) == 1


def test_each_key_has_an_order_of_its_own():
    update, hypers = made()[1], cast_hypers(GENERIC)
    one, again, other = (update(jax.random.key(seed), begun(), record(), hypers)[0].params for seed in (0, 0, 1))
    assert apart(one, again) == 0
    assert apart(one, other) > 1e-4


def test_counts_below_one_are_refused_by_name():
    actor, critic, _ = networks_of("categorical")
    for name in ("epochs", "minibatches"):
        for count in (0, -1, True):
            with pytest.raises(ValueError, match=f"{name} is {count}; it takes a whole number of at least 1"):
                ppo.ppo(spec_of("categorical"), actor, critic, **{name: count})


def test_minibatches_that_do_not_divide_a_rollout_are_refused():
    with pytest.raises(ValueError, match="minibatches is 5, which does not divide the 24 steps of a rollout"):
        learn(record(), minibatches=5)


def test_a_rollout_of_another_number_of_environments_is_refused():
    with pytest.raises(ValueError, match=r"ppo was made for 4 environments .* handed a rollout of 6"):
        learn(record(num_envs=6))
