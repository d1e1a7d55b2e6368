"""Environments: any gymnax environment, vectorised; the only part of purerl that imports gymnax (it takes seconds)."""

import gymnax

from purerl.envs.gridworlds import CliffWalking, WindyGridworld
from purerl.envs.textbook import MaximizationBias
from purerl.envs.vectorised import Env, make, names

__all__ = ["CliffWalking", "Env", "MaximizationBias", "WindyGridworld", "make", "names", "register"]


def register() -> None:
    """Make purerl's own environments known to `gymnax.make`, each once: it refuses a name that it knows."""
    for environment in (CliffWalking, WindyGridworld, MaximizationBias):
        name = f"{environment.__name__}-purerl"
        if name not in gymnax.registered_envs:  # notebooks import again
            gymnax.register(name, environment)


register()
