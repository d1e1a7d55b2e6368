"""Tables and tile coding: which features are 1, which of them two observations share, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import features
from purerl.base import Box, Discrete, Spec


def spec_of(low, high, shape=(2,)):
    return Spec(observation=Box(shape, np.dtype(np.float32), low, high), action=Discrete(2), num_envs=1)


UNIT = spec_of(0.0, 1.0)


def tiles_of(point, low, high, tiles, tilings):
    """The feature of each tiling, one dimension after the other, in float64."""
    found = []
    for tiling in range(tilings):
        index = 0
        for dimension, count in enumerate(tiles):
            least, most = low[dimension], high[dimension]
            width = (most - least) / count
            moved = tiling * (2 * dimension + 1) / tilings
            moved -= int(moved)
            number = int((min(max(point[dimension], least), most) - least) / width + moved)
            assert 0 <= number <= count
            index = index * (count + 1) + number
        found.append(tiling * int(np.prod([count + 1 for count in tiles])) + index)
    return found


@pytest.mark.parametrize(
    ("low", "high", "tiles", "tilings"),
    [
        ([0.0], [1.0], (5,), 4),
        ([-1.2, -0.07], [0.6, 0.07], (8, 8), 8),
        ([-2.0, 0.0], [3.0, 0.5], (3, 7), 5),
        ([-1.0, 0.0, 10.0], [1.0, 0.1, 20.0], (2, 4, 3), 16),
        ([0.0, 0.0], [1.0, 1.0], (1, 2), 1),
    ],
)
def test_each_tiling_has_the_tile_of_a_loop(low, high, tiles, tilings):
    rng, dimensions = np.random.default_rng(0), len(tiles)
    spec = spec_of(np.array(low, np.float32), np.array(high, np.float32), (dimensions,))
    coding = features.tile_coding(spec, tiles, tilings)
    assert (coding.size, coding.count) == (tilings * np.prod([count + 1 for count in tiles]), tilings)
    low, high = np.array(low), np.array(high)
    beyond = (high - low) * 0.2
    points = rng.uniform(low - beyond, high + beyond, size=(500, dimensions)).astype(np.float32)
    found = np.asarray(jax.jit(coding.active)(jnp.asarray(points)))
    assert (found.shape, found.dtype) == ((500, tilings), np.int32)
    np.testing.assert_array_equal(found, [tiles_of(point, low, high, tiles, tilings) for point in points.astype(float)])
    assert (np.diff(np.sort(found, axis=-1), axis=-1) > 0).all() if tilings > 1 else True
    assert found.min() >= 0
    assert found.max() < coding.size


def test_one_number_of_tiles_is_that_of_every_dimension():
    one, each = features.tile_coding(UNIT, 3, 4), features.tile_coding(UNIT, (3, 3), 4)
    points = jnp.asarray(np.random.default_rng(0).random((50, 2)), jnp.float32)
    assert one[:2] == each[:2] == (4 * 4 * 4, 4)
    np.testing.assert_array_equal(one.active(points), each.active(points))


def test_corners_have_tiles_in_range_and_what_lies_beyond_the_bounds_counts_as_on_them():
    spec = spec_of(np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32))
    coding = features.tile_coding(spec, (10, 7), 16)
    space = spec.observation
    for corner in itertools.product(*zip(space.low, space.high, strict=True)):
        corner = np.array(corner, np.float32)
        active = np.asarray(coding.active(jnp.asarray(corner)))
        per_tiling = active - np.arange(16) * (11 * 8)
        assert per_tiling.min() >= 0
        assert per_tiling.max() < 11 * 8
        outwards = np.where(corner == space.high, 1, -1)
        for far in (0.1, 1e3, np.inf):
            np.testing.assert_array_equal(coding.active(jnp.asarray(corner + far * outwards, jnp.float32)), active)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_any_leading_axes_will_do(leading):
    points = np.random.default_rng(1).random((*leading, 2)).astype(np.float32)
    coding = features.tile_coding(UNIT, 4, 8)
    found = coding.active(jnp.asarray(points))
    flat = coding.active(jnp.asarray(points.reshape(-1, 2)))
    np.testing.assert_array_equal(found, flat.reshape(*leading, 8))


def test_given_bounds_take_the_place_of_the_space_s_own():
    unbounded = spec_of(-np.inf, np.inf)
    points = jnp.asarray(np.random.default_rng(2).uniform(-3, 3, (50, 2)), jnp.float32)
    given = features.tile_coding(unbounded, 4, 8, low=np.float32([-1, -2]), high=np.float32(2))
    own = features.tile_coding(spec_of(np.float32([-1, -2]), np.float32([2, 2])), 4, 8)
    np.testing.assert_array_equal(given.active(points), own.active(points))
    half = features.tile_coding(spec_of(np.float32([-1, -2]), np.inf), 4, 8, high=np.float32(2))
    np.testing.assert_array_equal(half.active(points), own.active(points))


# --- generalisation -------------------------------------------------------------------------------------------------


def shared(coding, one, other):
    """How many features two points share."""
    one, other = (np.asarray(coding.active(jnp.asarray(point, jnp.float32))) for point in (one, other))
    return np.intersect1d(one, other).size


@pytest.mark.parametrize("dimension", [0, 1])
def test_points_more_than_a_tile_apart_share_nothing_and_equal_points_all(dimension):
    coding, rng = features.tile_coding(UNIT, 5, 8), np.random.default_rng(3)
    for _ in range(20):
        point = rng.uniform(0, 0.75, size=2)
        assert shared(coding, point, point) == 8
        away = point.copy()
        away[dimension] += 0.2 * 1.01
        assert shared(coding, point, away) == 0


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_every_step_of_a_tile_over_the_tilings_changes_one_tile(dimension):
    """Whatever the dimension, as 1, 3 and 5 have no factor in common with the 8 tilings."""
    coding, rng = features.tile_coding(spec_of(0.0, 1.0, (3,)), 4, 8), np.random.default_rng(4)
    for _ in range(10):
        point = rng.uniform(0.05, 0.7, size=3)
        for steps in range(1, 9):
            away = point.copy()
            away[dimension] += 0.25 * steps / 8
            assert shared(coding, point, away) == 8 - steps


def test_the_tilings_are_moved_against_each_other_in_every_dimension():
    """So a step aside in all dimensions at once changes different tilings, not the same ones."""
    coding = features.tile_coding(UNIT, 4, 8)
    rng = np.random.default_rng(5)
    left = [shared(coding, point, point + 0.25 / 8) for point in rng.uniform(0.05, 0.7, size=(20, 2))]
    assert set(left) <= {6, 7}
    assert 6 in left


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_has_a_feature_for_each_state():
    table = features.table(Spec(observation=Discrete(7), action=Discrete(2), num_envs=1))
    assert table[:2] == (7, 1)
    np.testing.assert_array_equal(table.active(jnp.int32(3)), [3])
    observations = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
    np.testing.assert_array_equal(table.active(observations), np.arange(6).reshape(2, 3, 1))


def test_a_table_of_a_box_is_refused_with_what_to_take():
    sentence = r"^a table needs a discrete observation space, and this environment's is Box.*features.tile_coding$"
    with pytest.raises(ValueError, match=sentence):
        features.table(UNIT)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space", [Discrete(3), Box((), np.dtype(np.float32), 0, 1), Box((2, 2), np.dtype(np.float32), 0, 1)]
)
def test_tiles_need_a_box_of_one_axis(space):
    with pytest.raises(ValueError, match=r"^tile coding needs a box of one axis as observation space, and this env"):
        features.tile_coding(UNIT._replace(observation=space), 4, 8)


@pytest.mark.parametrize(
    ("tiles", "tilings", "sentence"),
    [
        (4, 0, "^tilings is 0; it takes a whole number of at least 1$"),
        (4, 3, "^tilings is 3, and in dimension 1 several would lie on one another; it takes a power of two"),
        (4, 9, "^tilings is 9, and in dimension 1 several would lie on one another"),
        (0, 4, "^tiles is 0; it takes a whole number of at least 1$"),
        ((3, -1), 4, "^tiles is -1; it takes a whole number of at least 1$"),
        ((3,), 4, r"^tiles is \(3,\); observations have 2 dimensions, and it takes a number for each$"),
        ((3, 3, 3), 4, r"^tiles is \(3, 3, 3\); observations have 2 dimensions, and it takes a number for each$"),
    ],
)
def test_bad_counts_are_named(tiles, tilings, sentence):
    with pytest.raises(ValueError, match=sentence):
        features.tile_coding(UNIT, tiles, tilings)


GREATEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        ([0, -np.inf], 1, "^dimension 1 goes from -inf to 1; tile coding takes finite bounds: give low= and high=$"),
        (0, np.inf, "^dimension 0 goes from 0 to inf; "),
        ([-1, -GREATEST], [1, GREATEST], r"^dimension 1 goes from -3.40282e\+38 to 3.40282e\+38; "),
        ([0, 1], 1, "^dimension 1 goes from 1 to 1; "),
        ([2, 0], 1, "^dimension 0 goes from 2 to 1; "),
        (0, np.nan, "^dimension 0 goes from 0 to nan; "),
    ],
)
def test_bounds_that_are_infinite_or_empty_are_named(low, high, sentence):
    with pytest.raises(ValueError, match=sentence):
        features.tile_coding(UNIT, 4, 8, low=np.float32(low), high=np.float32(high))
    with pytest.raises(ValueError, match=sentence):
        features.tile_coding(spec_of(np.float32(low), np.float32(high)), 4, 8)


def test_on_the_upper_bound_the_finest_tiles_stay_in_their_tiling():
    """So fine that float32 rounds the place up to the next tile."""
    line = Spec(Box((1,), np.dtype(np.float32), np.float32(0), np.float32(1)), Discrete(2), num_envs=1)
    coding = features.tile_coding(line, 2**20, 16)
    active = np.asarray(coding.active(jnp.ones((1,))))
    np.testing.assert_array_equal(active // (2**20 + 1), np.arange(16))
