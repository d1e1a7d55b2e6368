"""Small networks of both kinds of policies, apart and on one torso, for the tests of agents that take both."""

import jax
import jax.numpy as jnp
import numpy as np

from purerl import networks
from purerl.base import Box, Discrete, Spec
from purerl.distributions import Gaussian

NUM_ENVS, FEATURES, ACTIONS, DIMENSIONS = 4, 3, 4, 2
KINDS = {
    "categorical": Discrete(ACTIONS),
    "gaussian": Box(shape=(DIMENSIONS,), dtype=np.float32, low=-1.0, high=1.0),
}


def spec_of(kind):
    return Spec(
        observation=Box(shape=(FEATURES,), dtype=np.float32, low=-np.inf, high=np.inf),
        action=KINDS[kind],
        num_envs=NUM_ENVS,
    )


def networks_of(kind, shared=False):
    """Actor, critic and torso."""
    spec = spec_of(kind)
    if not shared:
        return networks.policy(spec, (5,)), networks.state_values(spec, (5,)), None
    torso = networks.torso(spec, (5,))
    return networks.policy(torso.spec, ()), networks.state_values(torso.spec, ()), torso.network


def log_prob_of(policy, action):
    """Log-probabilities, written again."""
    if isinstance(policy, Gaussian):
        return jax.scipy.stats.norm.logpdf(action, policy.mean, jnp.exp(policy.log_deviation)).sum(axis=-1)
    return jnp.take_along_axis(jax.nn.log_softmax(policy.logits), action[..., None], axis=-1)[..., 0]


def apart(one, other):
    """The largest difference between two pytrees."""
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), one, other)
    return float(max(jax.tree.leaves(differences)))
