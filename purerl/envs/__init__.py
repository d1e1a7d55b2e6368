"""Environments: any gymnax environment, vectorised; the only part of purerl that imports gymnax (it takes seconds)."""

import gymnax

from purerl.envs.bandits import Bandit
from purerl.envs.chains import BairdsCounterexample, Gambler, RandomWalk, ShortCorridor
from purerl.envs.drawings import animate, can_be_drawn
from purerl.envs.finite import FiniteEnvironment, enumerate_mdp, tabular_mdp
from purerl.envs.gridworlds import CliffWalking, CornerGridworld, JumpingGridworld, WindyGridworld, grid_of
from purerl.envs.mazes import DynaMaze
from purerl.envs.textbook import MaximizationBias
from purerl.envs.vectorised import Env, create, make, names

__all__ = [
    "OWN",
    "BairdsCounterexample",
    "Bandit",
    "CliffWalking",
    "CornerGridworld",
    "DynaMaze",
    "Env",
    "FiniteEnvironment",
    "Gambler",
    "JumpingGridworld",
    "MaximizationBias",
    "RandomWalk",
    "ShortCorridor",
    "WindyGridworld",
    "animate",
    "can_be_drawn",
    "create",
    "enumerate_mdp",
    "grid_of",
    "make",
    "names",
    "register",
    "tabular_mdp",
]


OWN = (
    BairdsCounterexample,
    Bandit,
    CliffWalking,
    CornerGridworld,
    DynaMaze,
    Gambler,
    JumpingGridworld,
    MaximizationBias,
    RandomWalk,
    ShortCorridor,
    WindyGridworld,
)


def register() -> None:
    """Make purerl's own environments known to `gymnax.make`, each once: it refuses a name that it knows."""
    for environment in OWN:
        name = f"{environment.__name__}-purerl"
        if name not in gymnax.registered_envs:  # notebooks import again
            gymnax.register(name, environment)


register()
