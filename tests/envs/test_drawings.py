"""Episodes as GIFs: a picture for every state, and another where the state is another."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from purerl import envs

OWN = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "FrozenLake-misc"]
GRIDS = ["CliffWalking", "CornerGridworld", "DynaMaze", "JumpingGridworld", "WindyGridworld"]
NAMES = [*OWN, *(f"{name}-purerl" for name in GRIDS), "Catch-bsuite"]


def frames(gif):
    with Image.open(io.BytesIO(gif)) as image:
        found = []
        for frame in range(image.n_frames):
            image.seek(frame)
            found.append(np.asarray(image.convert("RGB")))
        return found


def states_of(name):
    """Three states: where an episode starts, and after some moves; Catch's ball falls."""
    env = envs.make(name, 1, restart=False)
    _, state = env.reset(jax.random.key(2), env.params)
    states, step = [state], jax.jit(env.step)
    for turn in range(2):
        key = jax.random.key(turn)
        action = np.full((1, *env.spec.action.shape), turn, env.spec.action.dtype)
        for _ in range(4):
            state = step(key, state, action, env.params)[1]
        states.append(state)
    return env.params, jax.tree.map(lambda *leaves: np.stack(leaves)[:, 0], *states)


FEW = ("CartPole-v1", "CliffWalking-purerl", "Breakout-MinAtar")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.thorough) for name in NAMES]
)
def test_every_state_is_a_picture_of_its_own(name):
    environment = envs.create(name)
    assert envs.can_be_drawn(environment)
    params, states = states_of(name)
    drawn = frames(envs.animate(environment, params, states, np.array([0.0, 1.0, 2.5])))
    assert len(drawn) == 3
    # Below the title, which counts the steps.
    below = [picture[60:] for picture in drawn]
    assert (below[0] != below[1]).any() or (below[1] != below[2]).any()
    same = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 2), states)
    again = frames(envs.animate(environment, params, same, np.array([0.0, 0.0])))
    assert (again[0][60:] == again[-1][60:]).all()


def test_a_cart_is_where_its_state_says():
    environment, params = envs.create("CartPole-v1"), envs.make("CartPole-v1", 1).params
    _, states = states_of("CartPole-v1")
    states = states.replace(x=np.array([-2.0, 0.0, 2.0]), theta=np.zeros(3))
    middles = []
    for picture in frames(envs.animate(environment, params, states, np.zeros(3))):
        orange = (picture[36:, :, 0] > 180) & (picture[36:, :, 1] > 80) & (picture[36:, :, 2] < 90)
        middles.append(np.flatnonzero(orange.any(axis=0)).mean())
    # 460 pixels show 1.1 times the track on either side.
    assert np.allclose(middles, 240 + np.array([-2.0, 0.0, 2.0]) * 460 / (2.2 * 2.4), atol=1.5)


def test_what_cannot_be_drawn_says_so():
    environment = envs.create("Gambler-purerl")
    assert not envs.can_be_drawn(environment)
    with pytest.raises(ValueError, match="env is Gambler-purerl, which cannot be drawn"):
        envs.animate(environment, environment.default_params, None, np.zeros(1))
