"""Planning: the Bellman equations of a finite MDP that is known, to jit and to vmap (Sutton & Barto, chapters 3 and 4).

An MDP is given by `transition`, `reward`, `terminal` and `discount` as `mdps` describes them. Each function takes a few
arrays [S, A] of memory beside its arguments, but for `solve_policy`, which takes some [S, S]. Arguments that are no
tracers are checked: a ValueError for probabilities that are negative or do not sum to one, for shapes that do not fit,
and, without discount, for states from which no episode ends.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from purerl.base import require_number_or_tracer
from purerl.checks import require_count
from purerl.mdps import Successors, Transitions, require_mdp

Given = ParamSpec("Given")
Number = Float[Array, ""] | float
Count = Int[Array, ""] | int


class Solution(NamedTuple):
    """What is known of an MDP, or of a policy in it."""

    value: Float[Array, " S"]
    action_value: Float[Array, "S A"]
    policy: Float[Array, "S A"]  # optimal actions alike where an MDP was solved, else the policy that was evaluated
    iterations: Int[Array, ""]
    residual: Float[Array, ""]  # max |(B v)(s) - v(s)|, B the Bellman operator: 0 for the exact solution


# --- Bellman's operators --------------------------------------------------------------------------------------------


def action_values(
    value: Float[Array, " S"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
) -> Float[Array, "S A"]:
    """Return q(s, a) = r(s, a) + gamma sum_s' p(s'|s, a) v(s'), and 0 in terminal states (S&B equation 4.6)."""
    value = jnp.where(terminal, 0.0, value)
    if isinstance(transition, Successors):
        following = jnp.sum(transition.probability * value[transition.state], axis=-1)
    else:
        following = jnp.einsum("sat,t->sa", transition, value, precision="highest")
    return jnp.where(terminal[:, None], 0.0, reward + discount * following)


def bellman_expectation(
    value: Float[Array, " S"],
    policy: Float[Array, "S A"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
) -> Float[Array, " S"]:
    """Return sum_a pi(a|s) q(s, a): one sweep of policy evaluation, all states at once (S&B equation 4.5)."""
    return jnp.sum(policy * action_values(value, transition, reward, terminal, discount), axis=-1)


def bellman_optimality(
    value: Float[Array, " S"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
) -> Float[Array, " S"]:
    """Return max_a q(s, a): one sweep of value iteration, all states at once (S&B equation 4.10)."""
    return jnp.max(action_values(value, transition, reward, terminal, discount), axis=-1)


def optimal_actions(action_value: Float[Array, "S A"], tolerance: Number = 1e-5) -> Bool[Array, "S A"]:
    """Return whether q(s, a) is the largest of its state, but for `tolerance` times the largest |q| of all."""
    slack = tolerance * jnp.max(jnp.abs(action_value))
    return action_value >= jnp.max(action_value, axis=-1, keepdims=True) - slack


def greedy_policy(action_value: Float[Array, "S A"], tolerance: Number = 1e-5) -> Float[Array, "S A"]:
    """Return the policy that takes each of a state's optimal actions with the same probability."""
    best = jnp.asarray(optimal_actions(action_value, tolerance), action_value.dtype)
    return best / jnp.sum(best, axis=-1, keepdims=True)


def _checked(function: Callable[Given, Solution]) -> Callable[Given, Solution]:
    """Return `function` compiled, so that calls with arrays of the same sizes share a program, and its MDP checked."""
    names, compiled = inspect.signature(function), jax.jit(function)

    @functools.wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Solution:
        given = names.bind(*args, **kwargs).arguments
        mdp = (given.get(name) for name in ("transition", "reward", "terminal", "discount", "policy"))
        require_mdp(*mdp)  # pyright: ignore[reportCallIssue]
        require_number_or_tracer("tolerance", given.get("tolerance", 0.0), least=0.0)
        for name in ("sweeps", "max_iterations"):
            count = given.get(name, 1)
            if not isinstance(count, Tracer):
                require_count(name, count.item() if isinstance(count, Array) and count.ndim == 0 else count)
        return compiled(*args, **kwargs)

    return checked


# --- the value of a policy ------------------------------------------------------------------------------------------


@_checked
def evaluate_policy(
    policy: Float[Array, "S A"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
    *,
    tolerance: Number = 1e-7,
    max_iterations: Count = 100_000,
) -> Solution:
    """Evaluate a policy by sweeps from v = 0, until none changes a value by more than `tolerance` max |v| (S&B 4.1).

    What is left is then up to tolerance max |v| / (1 - gamma). Raises ValueError as the module says.
    """
    mdp = transition, reward, terminal, discount
    value, iterations = _to_rest(
        lambda value: bellman_expectation(value, policy, *mdp), jnp.zeros_like(reward[:, 0]), tolerance, max_iterations
    )
    return _evaluated(value, policy, *mdp, iterations=iterations)


@_checked
def solve_policy(
    policy: Float[Array, "S A"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
) -> Solution:
    """Evaluate a policy by solving v = r_pi + gamma P_pi v, eliminating state after state: S^3 operations.

    By Grassmann, Taksar & Heyman (1985): probabilities are added and divided, never subtracted, so they stay exact to
    rounding however late episodes end. (LAPACK is not called: of its batched solvers two can wait for each other for
    ever when they are vmapped on a machine with two cores.) Raises ValueError as the module says.
    """
    mdp = transition, reward, terminal, discount
    states = jnp.arange(len(reward))
    if isinstance(transition, Successors):
        weight = policy[..., None] * transition.probability
        rows = jnp.broadcast_to(states[:, None, None], weight.shape)
        chain = jnp.zeros((states.size, states.size), weight.dtype).at[rows, transition.state].add(weight)
    else:
        chain = jnp.einsum("sa,sat->st", policy, transition, precision="highest")
    # v(s) leaves[s] = gain[s] + sum_t chain[s, t] v(t), leaves[s] being what ends there and all of chain[s].
    chain = jnp.where(terminal[:, None], 0.0, discount * chain)
    ends = jnp.where(terminal, 1.0, 1.0 - discount + jnp.sum(chain, axis=1, where=terminal))
    chain = jnp.where(terminal | (states[:, None] == states), 0.0, chain)
    gain = jnp.where(terminal, 0.0, jnp.sum(policy * reward, axis=-1))

    def eliminate(state, equations):
        chain, ends, gain = equations
        share = chain[:, state] / (ends[state] + jnp.sum(chain[state]))
        chain = chain + share[:, None] * chain[state]
        chain = jnp.where((states[:, None] == states) | (states == state), 0.0, chain)
        return chain, ends + share * ends[state], gain + share * gain[state]

    _, ends, gain = jax.lax.fori_loop(0, states.size, eliminate, (chain, ends, gain))
    return _evaluated(gain / ends, policy, *mdp, iterations=jnp.int32(1))


@_checked
def solve_policy_matrix_free(
    policy: Float[Array, "S A"],
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
    *,
    tolerance: Number = 1e-6,
    max_iterations: Count = 10_000,
) -> Solution:
    """Evaluate a policy by BiCGSTAB on (I - gamma P_pi) v = r_pi: products with the matrix alone, which is never made.

    For many states: in place of the 1 / (1 - gamma) sweeps of `evaluate_policy` it takes about the square root of
    that. It stops once the residual is below `tolerance` max |r|. Raises ValueError as the module says.
    """
    mdp = transition, reward, terminal, discount
    constant = bellman_expectation(jnp.zeros_like(reward[:, 0]), policy, *mdp)

    def matrix(value):
        return value - (bellman_expectation(value, policy, *mdp) - constant)

    # By tens and from where it stands: its recurrence forgets the true residual, and breaks down where that is 0.
    block, scale = 10, jnp.max(jnp.abs(constant))

    def unfinished(carry):
        iterations, value = carry
        return (iterations < max_iterations) & (jnp.max(jnp.abs(constant - matrix(value))) > tolerance * scale)

    def more(carry):
        iterations, value = carry
        tenth: Any = 0.1 * tolerance  # traced, though it is declared a float
        better, _ = jax.scipy.sparse.linalg.bicgstab(matrix, constant, value, tol=tenth, maxiter=block)
        return iterations + block, jnp.where(jnp.all(jnp.isfinite(better)), better, value)

    iterations, value = jax.lax.while_loop(unfinished, more, (jnp.int32(0), constant))
    return _evaluated(value, policy, *mdp, iterations=iterations)


def _evaluated(value: Array, policy: Array, *mdp: Any, iterations: Array) -> Solution:
    action_value = action_values(value, *mdp)
    residual = jnp.max(jnp.abs(jnp.sum(policy * action_value, axis=-1) - value))
    return Solution(value, action_value, policy, iterations, residual)


# --- the optimal policy ---------------------------------------------------------------------------------------------


@_checked
def value_iteration(
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
    *,
    tolerance: Number = 1e-7,
    max_iterations: Count = 100_000,
) -> Solution:
    """Solve an MDP by sweeps v <- max_a q from v = 0, until none changes a value by more than `tolerance` max |v|.

    S&B section 4.4; what is left is then up to tolerance max |v| / (1 - gamma). Raises ValueError as the module says.
    """
    mdp = transition, reward, terminal, discount
    value, iterations = _to_rest(
        lambda value: bellman_optimality(value, *mdp), jnp.zeros_like(reward[:, 0]), tolerance, max_iterations
    )
    return _solved(value, *mdp, iterations=iterations)


@_checked
def modified_policy_iteration(
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
    *,
    sweeps: Count = 20,
    tolerance: Number = 1e-7,
    max_iterations: Count = 100_000,
) -> Solution:
    """Solve an MDP by `sweeps` of evaluation between improvements (Puterman & Shin 1978); stops as `value_iteration`.

    It spares the maximum over actions where value iteration would take many sweeps; one iteration is an improvement
    with its sweeps. Raises ValueError as the module says.
    """
    mdp = transition, reward, terminal, discount

    def improve(value):
        action_value = action_values(value, *mdp)
        policy = jax.nn.one_hot(jnp.argmax(action_value, axis=-1), reward.shape[-1], dtype=reward.dtype)
        improved = jnp.max(action_value, axis=-1)
        return jax.lax.fori_loop(1, sweeps, lambda _, value: bellman_expectation(value, policy, *mdp), improved)

    value, iterations = _to_rest(improve, jnp.zeros_like(reward[:, 0]), tolerance, max_iterations)
    return _solved(value, *mdp, iterations=iterations)


@_checked
def policy_iteration(
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    discount: Number,
    *,
    tolerance: Number = 1e-6,
    max_iterations: Count = 1_000,
) -> Solution:
    """Solve an MDP by `solve_policy` and improvement in turn, until no action is better than the policy's (S&B 4.3).

    It begins with all actions alike, and leaves an action only for one that is better by `tolerance` max |q|, so that
    it ends where some are equally good. Undiscounted, every policy on the way must end. Raises ValueError as the module
    says.
    """
    mdp = transition, reward, terminal, discount

    def improve(carry):
        iterations, policy, _, _ = carry
        solution = solve_policy(policy, *mdp)
        better = ~jnp.any(optimal_actions(solution.action_value, tolerance) & (policy > 0), axis=-1)
        uniform = jnp.sum(policy > 0, axis=-1) > 1
        greedy = jax.nn.one_hot(jnp.argmax(solution.action_value, axis=-1), reward.shape[-1], dtype=reward.dtype)
        changed = better | uniform
        return iterations + 1, jnp.where(changed[:, None], greedy, policy), solution.value, jnp.any(changed)

    def unfinished(carry):
        iterations, _, _, changed = carry
        return changed & (iterations < max_iterations)

    uniform = jnp.full_like(reward, 1.0 / reward.shape[-1])
    start = jnp.int32(0), uniform, jnp.zeros_like(reward[:, 0]), jnp.bool_(True)
    iterations, _, value, _ = jax.lax.while_loop(unfinished, improve, start)
    return _solved(value, *mdp, iterations=iterations)


def _solved(value: Array, *mdp: Any, iterations: Array) -> Solution:
    action_value = action_values(value, *mdp)
    residual = jnp.max(jnp.abs(jnp.max(action_value, axis=-1) - value))
    return Solution(value, action_value, greedy_policy(action_value), iterations, residual)


def _to_rest(
    operator: Callable[[Array], Array], value: Array, tolerance: Number, max_iterations: Count
) -> tuple[Array, Array]:
    """Return (the value that `operator` leaves as it is, iterations)."""

    def unfinished(carry):
        iterations, value, change = carry
        return (iterations < max_iterations) & (change > tolerance * jnp.max(jnp.abs(value)))

    def sweep(carry):
        iterations, value, _ = carry
        swept = operator(value)
        return iterations + 1, swept, jnp.max(jnp.abs(swept - value))

    start = jnp.int32(0), value, jnp.asarray(jnp.inf, value.dtype)
    iterations, value, _ = jax.lax.while_loop(unfinished, sweep, start)
    return value, iterations
