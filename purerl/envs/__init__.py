"""Environments: any gymnax environment, vectorised; the only part of purerl that imports gymnax (it takes seconds)."""

from purerl.envs.gridworlds import CliffWalking, WindyGridworld, register
from purerl.envs.vectorised import Env, make, names

register()

__all__ = ["CliffWalking", "Env", "WindyGridworld", "make", "names"]
