"""Trust-region steps for any policy and any loss: natural gradient, conjugate gradient, line search; matrix-free.

Parameters are any pytree of float32 arrays. All of it can be jitted and vmapped: a lane that has converged waits as it
is for the others. (Schulman et al. 2015, appendix C; Kakade 2001 for the natural gradient.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from purerl.base import pytree_dataclass, require_number_or_tracer
from purerl.checks import require_count, require_function

Number = Float[Array, ""] | float
Scalar = Callable[[PyTree], Float[Array, ""]]
Linear = Callable[[PyTree], PyTree]


@pytree_dataclass
class TrustRegionInfo:
    """What came of a step; float32 scalars but for the last two."""

    kl: Any  # acceptance_kl at the parameters returned
    improvement: Any  # surrogate at the parameters returned, less that at the old ones
    expected_improvement: Any  # gradient times the step tried first: the improvement if the surrogate were linear
    backtracks: Any  # int32: how often the step was shortened
    accepted: Any  # bool: if not, the parameters are the old ones, bit for bit


def fisher_vector_product(mean_kl: Scalar, params: PyTree, vector: PyTree, *, damping: Number) -> PyTree:
    """Return (H + damping I) v, H the Hessian of `mean_kl` at `params`: by a derivative of its gradient along v.

    With mean_kl(params) = KL(old‖params) averaged over states, H at the old parameters is the Fisher matrix.
    """
    require_function("mean_kl", mean_kl, wanted="a function of the parameters")
    _require_alike("vector", vector, params)
    require_number_or_tracer("damping", damping, least=0.0)
    return _add(jax.jvp(jax.grad(mean_kl), (params,), (vector,))[1], damping, vector)


def gauss_newton_product(outputs: Callable[[PyTree], PyTree], divergence: Scalar, params: PyTree) -> Linear:
    """Return v -> H v, H the Hessian of divergence(outputs(params)) at a `params` where the divergence is least.

        H = J' D J,   J the Jacobian of `outputs`, D the Hessian of `divergence` at outputs(params)

    With outputs(params) the policy in all states, and divergence(policy) = KL(old‖policy) averaged over them, that is
    the Fisher-vector product, at two thirds of the time: a derivative forwards and one backwards, instead of both ways
    through the gradient.
    """
    require_function("outputs", outputs, wanted="a function of the parameters")
    require_function("divergence", divergence, wanted="a function of what outputs returns")
    policy, forwards = jax.linearize(outputs, params)
    backwards = jax.linear_transpose(forwards, params)

    def product(vector: PyTree) -> PyTree:
        return backwards(jax.jvp(jax.grad(divergence), (policy,), (forwards(vector),))[1])[0]

    return product


def conjugate_gradient(product: Linear, target: PyTree, *, iterations: int, tolerance: Number = 1e-10) -> PyTree:
    """Return x with A x = b approximately, `product` being x -> A x, symmetric and positive, and `target` b.

    From x = 0, at most `iterations` steps, and none after r'r < `tolerance`, r = b - A x being what is left.
    """
    require_function("product", product, wanted="a function x -> A x")
    require_count("iterations", iterations, least=0)
    require_number_or_tracer("tolerance", tolerance, least=0.0)

    def unfinished(carry: tuple[Array, PyTree, PyTree, PyTree, Array]) -> Array:
        step, _, _, _, squared = carry
        return (step < iterations) & (squared >= tolerance) & (squared > 0.0)

    def advance(carry: tuple[Array, PyTree, PyTree, PyTree, Array]):
        step, solution, rest, direction, squared = carry
        image = product(direction)
        length = squared / _dot(direction, image)
        solution, rest = _add(solution, length, direction), _add(rest, -length, image)
        following = _dot(rest, rest)
        direction = _add(rest, following / squared, direction)
        return step + 1, solution, rest, direction, following

    start = jnp.int32(0), jax.tree.map(jnp.zeros_like, target), target, target, _dot(target, target)
    return jax.lax.while_loop(unfinished, advance, start)[1]


def line_search(
    params: PyTree,
    step: PyTree,
    acceptable: Callable[[PyTree], Any],
    *,
    max_backtracks: int,
    backtrack_coefficient: Number,
) -> tuple[PyTree, Int[Array, ""], Bool[Array, ""]]:
    """Return the first acceptable of params + c^j step, j = 0 .. max_backtracks - 1, with j and whether there was one.

    c is `backtrack_coefficient`. If none is acceptable the parameters are returned as they are.
    """
    _require_alike("step", step, params)
    require_function("acceptable", acceptable, wanted="a function of the parameters")
    require_count("max_backtracks", max_backtracks, least=0)
    require_number_or_tracer("backtrack_coefficient", backtrack_coefficient, least=0.0, most=1.0)

    def unfinished(carry: tuple[Array, PyTree, Array]) -> Array:
        tried, _, found = carry
        return (tried < max_backtracks) & ~found

    def shorten(carry: tuple[Array, PyTree, Array]):
        tried, _, _ = carry
        candidate = _add(params, backtrack_coefficient**tried, step)
        found = acceptable(candidate)
        return tried + 1, jax.tree.map(lambda new, old: jnp.where(found, new, old), candidate, params), found

    tried, params, found = jax.lax.while_loop(unfinished, shorten, (jnp.int32(0), params, jnp.bool_(False)))
    return params, tried - 1, found


def natural_step(
    params: PyTree,
    surrogate: Scalar,
    mean_kl: Scalar,
    *,
    delta: Number,
    damping: Number,
    cg_iterations: int,
    max_backtracks: int,
    backtrack_coefficient: Number,
    cg_tolerance: Number = 1e-10,
    acceptance_kl: Scalar | None = None,
    fisher_product: Linear | None = None,
) -> tuple[PyTree, TrustRegionInfo]:
    """Return the parameters after one step of TRPO that raises `surrogate` within a KL divergence of `delta`.

        s = (H + damping I)^-1 g,   beta = sqrt(2 delta / s'(H + damping I)s),   params + c^j beta s

    g is the gradient of `surrogate`, to be maximised, and H the Hessian of `mean_kl`(params) = KL(old‖params), whose
    value and gradient at `params` are zero. The first of the shortened steps is taken at which `acceptance_kl` (by
    default `mean_kl`) is below `delta` and the surrogate above what it was. If there is none, or the gradient is zero,
    the parameters are returned bit for bit. `fisher_product`, v -> H v, is by default `fisher_vector_product`;
    `gauss_newton_product` makes a faster one.
    """
    for name, function in {"surrogate": surrogate, "mean_kl": mean_kl}.items():
        require_function(name, function, wanted="a function of the parameters")
    for name, count in {"cg_iterations": cg_iterations, "max_backtracks": max_backtracks}.items():
        require_count(name, count, least=0)
    for name, number in {"delta": delta, "damping": damping, "cg_tolerance": cg_tolerance}.items():
        require_number_or_tracer(name, number, least=0.0)
    acceptance_kl = mean_kl if acceptance_kl is None else acceptance_kl
    before, gradient = jax.value_and_grad(surrogate)(params)

    def product(vector: PyTree) -> PyTree:
        if fisher_product is None:
            return fisher_vector_product(mean_kl, params, vector, damping=damping)
        return _add(fisher_product(vector), damping, vector)

    direction = conjugate_gradient(product, gradient, iterations=cg_iterations, tolerance=cg_tolerance)
    curvature = _dot(direction, product(direction))
    beta = jnp.where(curvature > 0, jnp.sqrt(2.0 * delta / jnp.where(curvature > 0, curvature, 1.0)), 0.0)
    step = jax.tree.map(lambda part: beta * part, direction)

    def acceptable(candidate: PyTree) -> Array:
        return (acceptance_kl(candidate) < delta) & (surrogate(candidate) > before)

    moved, backtracks, accepted = line_search(
        params, step, acceptable, max_backtracks=max_backtracks, backtrack_coefficient=backtrack_coefficient
    )
    return moved, TrustRegionInfo(
        kl=acceptance_kl(moved),
        improvement=surrogate(moved) - before,
        expected_improvement=_dot(gradient, step),
        backtracks=backtracks,
        accepted=accepted,
    )


def _require_alike(name: str, tree: PyTree, params: PyTree) -> None:
    """Raise a ValueError unless a tree has the parts and shapes of the parameters."""
    got, wanted = (jax.tree.map(jnp.shape, own) for own in (tree, params))
    if got != wanted:
        raise ValueError(f"{name} has the shapes {got}; it takes those of params, {wanted}")


def _dot(one: PyTree, other: PyTree) -> Float[Array, ""]:
    # Not vdot, which makes vectors of them first: parts that lie on several devices would have to be gathered.
    products = jax.tree.map(lambda a, b: jnp.tensordot(a, b, jnp.ndim(a), precision="highest"), one, other)
    return jnp.asarray(sum(jax.tree.leaves(products)))


def _add(one: PyTree, factor: Number, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + factor * b, one, other)
