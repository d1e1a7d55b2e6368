"""Planning against the exact values of the book, a float64 solve, gymnasium's tables and random MDPs."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, planning
from purerl.mdps import Successors, require_mdp

SOLVERS = [planning.value_iteration, planning.policy_iteration, planning.modified_policy_iteration]
EVALUATIONS = [planning.evaluate_policy, planning.solve_policy, planning.solve_policy_matrix_free]
over_solvers = pytest.mark.parametrize("solve", SOLVERS)
over_evaluations = pytest.mark.parametrize("evaluate", EVALUATIONS)


def uniform(mdp):
    return jnp.full_like(mdp.reward, 1 / mdp.reward.shape[1])


def dense(transition):
    """Transitions [S, A, S]."""
    if not isinstance(transition, Successors):
        return np.asarray(transition, np.float64)
    states, actions, outcomes = transition.state.shape
    result = np.zeros((states, actions, states))
    for state, action, outcome in np.ndindex(states, actions, outcomes):
        result[state, action, transition.state[state, action, outcome]] += transition.probability[
            state, action, outcome
        ]
    return result


def random_mdp(seed, states=7, actions=3, terminal=True):
    """An MDP in which many transitions are impossible, and every episode ends sooner or later if there is an end."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.3), size=(states, actions))
    ended = np.zeros(states, bool)
    if terminal:
        ended[-1] = True
        transition = 0.9 * transition
        transition[:, :, -1] += 0.1
    reward = rng.normal(size=(states, actions))
    return jnp.asarray(transition, jnp.float32), jnp.asarray(reward, jnp.float32), jnp.asarray(ended)


def exact(transition, reward, terminal, discount, policy):
    """V of a policy by a dense solve in float64."""
    transition, reward = dense(transition), np.asarray(reward, np.float64)
    alive = ~np.asarray(terminal)
    matrix = np.einsum("sa,sat->st", np.asarray(policy, np.float64), transition) * alive[:, None] * alive
    return np.linalg.solve(np.eye(len(alive)) - discount * matrix, alive * (np.asarray(policy) * reward).sum(axis=1))


def exact_best(transition, reward, terminal, discount, sweeps=3000):
    """V of the best policy by value iteration in float64."""
    transition, reward = dense(transition), np.asarray(reward, np.float64)
    alive, value = ~np.asarray(terminal), np.zeros(len(terminal))
    for _ in range(sweeps):
        value = alive * (reward + discount * transition @ value).max(axis=1)
    return value


# --- the book -------------------------------------------------------------------------------------------------------


@over_evaluations
def test_the_4x4_gridworld_of_figure_4_1(evaluate):
    mdp = envs.enumerate_mdp("CornerGridworld-purerl")
    found = evaluate(uniform(mdp), *mdp.arrays, 1.0)
    rows = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    np.testing.assert_allclose(found.value.reshape(4, 4), rows, atol=1e-3)
    assert found.residual < 1e-3


def test_sweeps_of_the_4x4_gridworld_are_those_of_figure_4_1():
    mdp = envs.enumerate_mdp("CornerGridworld-purerl")
    value, seen = jnp.zeros(16), {}
    for sweep in range(1, 11):
        value = planning.bellman_expectation(value, uniform(mdp), *mdp.arrays, 1.0)
        seen[sweep] = [float(value[1]), float(value[3])]
    np.testing.assert_allclose(
        [seen[2], seen[3], seen[10]], [[-1.75, -2], [-2.4375, -3], [-6.13797, -8.96732]], atol=1e-5
    )


def test_the_5x5_gridworld_of_exercises_3_5_and_3_8():
    mdp = envs.enumerate_mdp("JumpingGridworld-purerl")
    value = planning.solve_policy(uniform(mdp), *mdp.arrays, 0.9).value
    np.testing.assert_allclose(value[:5], [3.308996, 8.789292, 4.427619, 5.322368, 1.492179], atol=1e-5)
    for solve in SOLVERS:
        best = solve(*mdp.arrays, 0.9).value
        np.testing.assert_allclose(best[:5], [21.977485, 24.419428, 21.977485, 19.419428, 17.477485], atol=1e-4)


@over_solvers
def test_the_gambler(solve):
    mdp = envs.enumerate_mdp("Gambler-purerl")
    found = solve(*mdp.arrays, 1.0)
    np.testing.assert_allclose(found.value[jnp.array([25, 50, 75])], [0.16, 0.4, 0.64], atol=1e-5)


@pytest.mark.fast_cases(3)
@over_solvers
@pytest.mark.parametrize(("name", "start", "value"), [("CliffWalking", 36, -13), ("WindyGridworld", 30, -15)])
def test_the_shortest_ways(solve, name, start, value):
    mdp = envs.enumerate_mdp(f"{name}-purerl")
    assert mdp.start[start] == 1
    assert solve(*mdp.arrays, 1.0).value[start] == pytest.approx(value, abs=1e-4)


def soft(policy, epsilon):
    return (1 - epsilon) * policy + epsilon / policy.shape[1]


def best_soft_value(mdp, epsilon, start):
    """By policy iteration among epsilon-greedy policies."""
    policy = uniform(mdp)
    for _ in range(50):
        solution = planning.solve_policy(soft(policy, epsilon), *mdp.arrays, 1.0)
        policy = jax.nn.one_hot(jnp.argmax(solution.action_value, axis=1), mdp.reward.shape[1])
    return float(solution.value[start])


def test_soft_policies_on_the_cliff_and_in_the_wind():
    cliff = envs.enumerate_mdp("CliffWalking-purerl")
    assert best_soft_value(cliff, 0.1, 36) == pytest.approx(-20.7077, abs=2e-4)
    assert best_soft_value(envs.enumerate_mdp("WindyGridworld-purerl"), 0.1, 30) == pytest.approx(-17.0483, abs=2e-4)
    # Along the edge; and where chance has led away from it, right before down.
    edge = jax.nn.one_hot(jnp.argmax(jnp.round(planning.value_iteration(*cliff.arrays, 1.0).action_value), axis=1), 4)
    value = planning.solve_policy(soft(edge, 0.1), *cliff.arrays, 1.0).value[36]
    assert value == pytest.approx(-45.8033, abs=1e-3)


@pytest.mark.parametrize(("discount", "value"), [(0.9, 0.068891), (0.95, 0.180472), (0.99, 0.542026), (1.0, 0.823529)])
def test_frozen_lake(discount, value):
    mdp = envs.enumerate_mdp("FrozenLake-misc")
    for solve in SOLVERS:
        assert solve(*mdp.arrays, discount).value[0] == pytest.approx(value, abs=1e-4)


@over_evaluations
@pytest.mark.parametrize(("discount", "value"), [(0.99, 0.0123561), (1.0, 0.0139398)])
def test_frozen_lake_by_chance(evaluate, discount, value):
    mdp = envs.enumerate_mdp("FrozenLake-misc")
    assert evaluate(uniform(mdp), *mdp.arrays, discount).value[0] == pytest.approx(value, abs=1e-6)


def test_the_short_corridor():
    mdp = envs.enumerate_mdp("ShortCorridor-purerl")

    def performance(right):
        policy = jnp.broadcast_to(jnp.array([1 - right, right]), (4, 2))
        return planning.solve_policy(policy, *mdp.arrays, 1.0).value[0]

    for right in (0.1, 0.5, 0.9):
        assert performance(right) == pytest.approx((2 * right - 4) / (right * (1 - right)), rel=1e-5)
    best = 2 - np.sqrt(2)
    assert performance(best) == pytest.approx(-11.656854, abs=1e-4)
    # Its gradient, through the solve, is zero there.
    slopes = [float(jax.grad(performance)(jnp.float32(best + shift))) for shift in (-0.05, 0.0, 0.05)]
    assert slopes[0] > 1
    assert abs(slopes[1]) < 1e-2
    assert slopes[2] < -1


@over_evaluations
def test_random_walks(evaluate):
    mdp = envs.enumerate_mdp("RandomWalk-purerl")
    np.testing.assert_allclose(evaluate(uniform(mdp), *mdp.arrays, 1.0).value[1:-1], np.arange(1, 6) / 6, atol=1e-5)
    env = envs.RandomWalk(19)
    mdp = envs.enumerate_mdp(env, env.default_params.replace(left_reward=-1.0))
    value = evaluate(uniform(mdp), *mdp.arrays, 1.0).value[1:-1]
    np.testing.assert_allclose(value, np.arange(-9, 10) / 10, atol=1e-4)


def test_bairds_counterexample_diverges_under_dynamic_programming():
    env = envs.BairdsCounterexample()
    mdp, features = envs.enumerate_mdp(env), env.features
    weights, target = np.array([1, 1, 1, 1, 1, 1, 10, 1.0]), np.tile([0.0, 1.0], (7, 1))
    for _ in range(1000):
        value = jnp.asarray(features @ weights, jnp.float32)
        backup = planning.bellman_expectation(value, jnp.asarray(target, jnp.float32), *mdp.arrays, 0.99)
        weights += 0.01 / 7 * features.T @ np.asarray(backup - value, np.float64)
    assert weights[7] == pytest.approx(335.001209, rel=1e-4)
    assert np.sqrt(np.mean((features @ weights) ** 2)) == pytest.approx(581.355105, rel=1e-4)


def test_the_dyna_maze():
    mdp = envs.enumerate_mdp("DynaMaze-purerl")
    steps = jnp.full_like(mdp.reward, -1.0)
    walls = np.asarray(envs.DynaMaze().default_params.walls).reshape(-1)
    # Nobody is in a wall: let them be ends, so that every state has a value.
    terminal = mdp.terminal | walls
    assert planning.value_iteration(mdp.transition, steps, terminal, 1.0).value[18] == pytest.approx(-14)
    mean = planning.solve_policy(uniform(mdp), mdp.transition, steps, terminal, 1.0).value[18]
    assert mean == pytest.approx(-868.7254, rel=1e-4)


@pytest.mark.parametrize(("maze", "before", "after"), [("blocking", 10, 16), ("shortcut", 16, 10)])
def test_mazes_that_change(maze, before, after):
    env = envs.DynaMaze(maze)
    for params, steps in ((env.default_params, before), (env.changed_params, after)):
        mdp = envs.enumerate_mdp(env, params)
        value = planning.value_iteration(*mdp.arrays, 0.95).value[48]
        assert value == pytest.approx(0.95 ** (steps - 1), rel=1e-5)


# --- outside witnesses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("CliffWalking-purerl", "CliffWalking-v1", {}),
        ("FrozenLake-misc", "FrozenLake-v1", {}),
        ("FrozenLake-misc", "FrozenLake-v1", {"map_name": "8x8"}),
        ("FrozenLake-misc", "FrozenLake-v1", {"is_slippery": False}),
    ],
)
def test_tables_are_gymnasiums(ours, theirs, options):
    mdp, outside = envs.enumerate_mdp(ours, **options), gymnasium.make(theirs, **options).unwrapped.P
    transition = dense(mdp.transition)
    assert len(outside) == len(transition)
    for state in range(len(outside)):
        if mdp.terminal[state] or (theirs.startswith("Cliff") and 37 <= state <= 46):
            continue  # nobody acts there: ends, and cells of the cliff
        for action in range(transition.shape[1]):
            expected, reward = np.zeros(len(outside)), 0.0
            for probability, successor, gain, ended in outside[state][action]:
                expected[successor] += probability
                reward += probability * gain
                assert bool(mdp.terminal[successor]) == ended
            np.testing.assert_allclose(transition[state, action], expected, atol=1e-6)
            assert mdp.reward[state, action] == pytest.approx(reward, abs=1e-6)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("discount", "terminal"), [(0.0, False), (0.9, False), (0.99, True), (1.0, True)])
def test_random_mdps_are_solved_and_evaluated_exactly(sparse, discount, terminal):
    for seed in range(5):
        transition, reward, ended = mdp = random_mdp(seed, terminal=terminal)
        if sparse:
            state = jnp.broadcast_to(jnp.arange(7), transition.shape)
            mdp = Successors(state=state, probability=transition), reward, ended
        policy = jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(3), size=7), jnp.float32)
        expected = exact(*mdp, discount, policy)
        for evaluate in EVALUATIONS:
            found = evaluate(policy, *mdp, discount)
            np.testing.assert_allclose(found.value, expected, atol=1e-4)
            np.testing.assert_array_equal(found.policy, policy)
            np.testing.assert_allclose((policy * found.action_value).sum(axis=1), expected, atol=1e-4)
        best = exact_best(*mdp, discount)
        for solve in SOLVERS:
            found = solve(*mdp, discount)
            np.testing.assert_allclose(found.value, best, atol=1e-4)
            np.testing.assert_allclose(exact(*mdp, discount, found.policy), best, atol=1e-4)
            assert found.residual < 1e-4


def test_what_stands_at_a_terminal_state_counts_for_nothing():
    transition, reward, terminal = random_mdp(0)
    value = jnp.arange(7.0)
    expected = planning.action_values(value.at[-1].set(0.0), transition, reward, terminal, 0.9)
    found = planning.action_values(value.at[-1].set(jnp.nan), transition, reward.at[-1].set(jnp.nan), terminal, 0.9)
    np.testing.assert_array_equal(found, expected)
    assert (expected[-1] == 0).all()


def test_rows_of_terminal_states_need_be_no_probabilities():
    transition, reward, terminal = random_mdp(0)
    found = planning.value_iteration(transition.at[-1].set(0.0), reward, terminal, 0.9).value
    np.testing.assert_array_equal(found, planning.value_iteration(transition, reward, terminal, 0.9).value)


def test_all_of_equally_good_actions_are_optimal():
    mdp = envs.enumerate_mdp("CornerGridworld-purerl")
    for solve in SOLVERS:
        policy = solve(*mdp.arrays, 1.0).policy
        np.testing.assert_allclose(policy[5], [0.5, 0, 0, 0.5])  # up or left
        np.testing.assert_allclose(policy[3], [0, 0, 0.5, 0.5])  # down or left
        np.testing.assert_allclose(policy[1], [0, 0, 0, 1])
    values = jnp.array([[1.0, 1.0 - 1e-6, 0.9]])
    assert planning.optimal_actions(values).tolist() == [[True, True, False]]
    assert planning.optimal_actions(values, 0.2).tolist() == [[True, True, True]]
    # The tolerance is a share of the largest value: in other units all is the same.
    assert planning.optimal_actions(1e4 * values).tolist() == [[True, True, False]]
    assert planning.optimal_actions(1e-4 * values).tolist() == [[True, True, False]]


# --- transformations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_batch_of_mdps_is_solved_as_each_would_be(solve):
    mdps = [random_mdp(seed) for seed in range(4)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mdps)
    discounts = jnp.array([0.5, 0.9, 0.99, 1.0])
    together = jax.jit(jax.vmap(solve))(*batch, discounts)
    for number, mdp in enumerate(mdps):
        alone = solve(*mdp, discounts[number])
        np.testing.assert_allclose(together.value[number], alone.value, atol=1e-5)
        np.testing.assert_array_equal(together.policy[number], alone.policy)


@pytest.mark.timeout(120)
def test_many_solves_at_once_do_not_hang():
    """Two batched calls of LAPACK in one program have been seen to wait for one another for ever on two cores."""
    transition, reward, terminal = random_mdp(0, states=40)
    policies = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 64, 40)), jnp.float32)

    @jax.jit
    @jax.vmap
    def both(one, other):
        mdp = transition, reward, terminal, 0.9
        return planning.solve_policy(one, *mdp).value, planning.solve_policy(other, *mdp).value

    for _ in range(50):
        jax.block_until_ready(both(*policies))


def test_a_million_states_are_evaluated_without_their_matrix():
    """A ring round which one goes forwards or stays: v = 1 / (1 - gamma) everywhere, if each step gives 1."""
    states = 1_000_000
    forwards = (jnp.arange(states) + 1) % states
    mdp = Successors(state=forwards[:, None, None], probability=jnp.ones((states, 1, 1)))
    found = planning.solve_policy_matrix_free(
        jnp.ones((states, 1)), mdp, jnp.ones((states, 1)), jnp.zeros(states, bool), 0.9
    )
    np.testing.assert_allclose(found.value, 10.0, rtol=1e-4)


def test_sweeps_between_improvements_spare_improvements():
    mdp = random_mdp(0, terminal=False)
    many, few = (planning.modified_policy_iteration(*mdp, 0.99, sweeps=sweeps).iterations for sweeps in (1, 20))
    assert many == planning.value_iteration(*mdp, 0.99).iterations
    assert 10 * few < many


def test_fewer_iterations_than_are_needed_leave_a_residual():
    mdp = random_mdp(0, terminal=False)
    found = planning.value_iteration(*mdp, 0.99, max_iterations=3)
    assert found.iterations == 3
    assert found.residual > 0.01


# --- what is refused ------------------------------------------------------------------------------------------------


def spoilt(**changes):
    transition, reward, terminal = random_mdp(0)
    return {"transition": transition, "reward": reward, "terminal": terminal, "discount": 0.9} | changes


T, R, E = random_mdp(0)
LOOP = jnp.zeros((2, 1, 2)).at[:, 0, 0].set(1.0)  # from everywhere to 0, which is not terminal
BAD = [
    ({"transition": 0.5 * T}, "transition takes rows that sum to 1, and one .* sums to 0.5"),
    ({"transition": T.at[0, 0, :2].add(jnp.array([2.0, -2.0]))}, "transition takes probabilities, and one is -"),
    ({"reward": R.at[0, 0].set(jnp.nan)}, "reward is not finite"),
    ({"discount": 1.5}, "discount is 1.5; it takes a number from 0 to 1"),
    ({"discount": -0.1}, "discount is -0.1"),
    (
        {"transition": LOOP, "reward": jnp.ones((2, 1)), "terminal": jnp.array([False, True]), "discount": 1.0},
        "discount is 1, and from 1 states, 0 among them, no policy ever comes to a terminal state",
    ),
    (
        {"transition": Successors(state=jnp.full((7, 3, 1), 7), probability=jnp.ones((7, 3, 1)))},
        "transition.state goes outside 0 .. 6",
    ),
]
MISSHAPEN = [
    ({"transition": T[:, :2]}, r"transition has the shape \(7, 2, 7\); beside 7 states x 3 actions it takes \(7, 3"),
    ({"reward": R[0]}, r"reward has the shape \(3,\)"),
    ({"terminal": E[:3]}, r"terminal has the shape \(3,\); beside 7 states"),
]


@over_solvers
@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_what_is_no_mdp_is_refused(solve, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        solve(**spoilt(**changes))


@pytest.mark.parametrize(("changes", "sentence"), MISSHAPEN)
def test_shapes_that_do_not_fit_are_refused(changes, sentence):
    """Where shapes are checked as types, as in these tests, the functions of `planning` are not even entered."""
    with pytest.raises(ValueError, match=sentence):
        require_mdp(**spoilt(**changes))


@over_evaluations
def test_what_is_no_policy_or_never_ends_is_refused(evaluate):
    with pytest.raises(ValueError, match=r"policy takes rows that sum to 1, and one .* sums to 3"):
        evaluate(jnp.ones((7, 3)), **spoilt())
    with pytest.raises(ValueError, match=r"policy has the shape \(7, 2\)"):
        require_mdp(**spoilt(), policy=jnp.ones((7, 2)) / 2)
    mdp = envs.enumerate_mdp("CliffWalking-purerl")
    up = jnp.zeros((48, 4)).at[:, 0].set(1.0)
    with pytest.raises(ValueError, match="the policy never comes to a terminal state"):
        evaluate(up, *mdp.arrays, 1.0)
    assert evaluate(up, *mdp.arrays, 0.5).value[0] == pytest.approx(-2)
