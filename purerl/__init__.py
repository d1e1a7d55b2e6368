"""Functional reinforcement learning in JAX: an algorithm is a record of pure functions, every number is traced."""

import os

__version__ = "0.1.0"

# XLA:CPU runs a while loop as one compiled function only if an iteration touches few bytes (1 KiB by default). Any
# other loop is dispatched operation by operation, at ten to twenty times the cost for a table in a gridworld. One MiB
# lets tabular loops in; loops with a matrix product, a convolution or a scatter are never affected. XLA reads the
# variable when the first program is compiled, and a user's own `xla_backend_extra_options` wins.
_SMALL_LOOPS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1048576"
if "xla_backend_extra_options" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_SMALL_LOOPS}".strip()
