"""House rules that linters do not know: who imports whom, names, docstrings, shapes as types."""

import ast
import sys
from pathlib import Path, PurePosixPath

import jaxtyping
import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "purerl"

# A module imports only from lower levels. A folder counts as one module.
LEVELS = {
    "checks": -1,
    "base": 0,
    **dict.fromkeys(["returns", "losses", "distributions", "exploration"], 1),
    **dict.fromkeys(
        ["trust_region", "mdps", "scores", "layers", "features", "points", "loss_scale", "batches", "compiled"], 1
    ),
    **dict.fromkeys(["planning", "networks", "tables", "prediction", "whole_episodes", "actor_critic"], 2),
    **dict.fromkeys(["optimizers", "precision", "replay", "normalize", "envs"], 2),
    **dict.fromkeys(["sharding", "distributed", "metrics", "results", "plots", "workers", "interrupts", "guards"], 2),
    **dict.fromkeys(["agents", "rollout", "archive", "checkpoint", "history", "sealed", "spread"], 3),
    **dict.fromkeys(["loop", "evaluate", "sweep", "store", "policies", "folders"], 4),
    **dict.fromkeys(["driver", "training", "export", "launch"], 5),
    **dict.fromkeys(["reports", "sweep_reports", "halving", "pbt", "tune"], 6),
    "cli": 7,
    **dict.fromkeys(["policy_cli", "sweep_cli", "runs", "parts", "play"], 8),
    "tune_cli": 9,
}
# Forbidden even where lower: so any agent runs under any environment, loop or mesh.
FORBIDDEN = {
    "agents": {"envs", "loop", "rollout", "sharding", "metrics"},
    "loop": {"agents"},
}
# Files of these folders may import one another; elsewhere what two share belongs in a lower module.
FAMILIES = {"envs"}
AGENT_LINES = 200

ARRAYS = {"Array", "ndarray"}  # jax.Array, jnp.ndarray, np.ndarray, jaxtyping.Array, chex.Array
SHAPED = {
    name
    for name, thing in vars(jaxtyping).items()
    if isinstance(thing, type) and issubclass(thing, jaxtyping.AbstractDtype)
}


def violations(file: PurePosixPath, code: str) -> list[str]:
    """Return a sentence per broken rule; `file` is relative to the package, as in agents/dqn.py."""
    tree = ast.parse(code)
    module = file.parts[0].removesuffix(".py")
    found = _bad_names(file)
    if module != "__init__" and module not in LEVELS:
        found.append(f"{module} has no level: give it one in LEVELS of tests/{Path(__file__).name}")
    else:
        found += _bad_imports(file, module, tree)
    found += _missing_docstrings(tree)
    if 1 <= LEVELS.get(module, 0) <= 4:
        found += _bare_arrays(tree)
    lines = len(code.splitlines())
    if module == "agents" and lines >= AGENT_LINES:
        found.append(f"an agent takes fewer than {AGENT_LINES} lines, and this one has {lines}")
    return [f"purerl/{file}: {sentence}" for sentence in found]


def _bad_names(file: PurePosixPath) -> list[str]:
    names = [part.removesuffix(".py") for part in file.parts]
    return [f"{name} is the name of a standard library module" for name in names if name in sys.stdlib_module_names]


def _bad_imports(file: PurePosixPath, module: str, tree: ast.Module) -> list[str]:
    found = []
    gathers = file.name == "__init__.py"  # a folder's __init__ may gather the folder's files
    for line, name in _imported(file, tree):
        package, _, path = name.partition(".")
        if package == "gymnax" and module != "envs":
            found.append(f"line {line} imports gymnax, which only envs may")
        if package != "purerl":
            continue
        other = path.partition(".")[0]
        if module == "__init__":
            # Every module's import runs the package's __init__ first, so this would be a circle.
            found.append(f"line {line}: the package's __init__ imports purerl.{other}")
        elif other not in LEVELS:
            found.append(f"line {line} imports purerl.{other}, which has no level in LEVELS")
        elif other in FORBIDDEN.get(module, ()):
            found.append(f"line {line}: {module} must not import {other}")
        elif other == module:
            if module not in FAMILIES and not gathers:
                found.append(f"line {line}: files of {module} must not import one another")
        elif LEVELS[other] >= LEVELS[module]:
            found.append(
                f"line {line}: {module} is at level {LEVELS[module]} and imports {other}, "
                f"which is at level {LEVELS[other]} and not lower"
            )
    return found


def _imported(file: PurePosixPath, tree: ast.Module) -> list[tuple[int, str]]:
    """Return line and full name of everything that `tree` imports anywhere, lazily or not."""
    here = ["purerl", *file.parts[:-1]]
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found += [(node.lineno, alias.name) for alias in node.names]
            case ast.ImportFrom():
                base = here[: len(here) - node.level + 1] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                if stem != "purerl":
                    found.append((node.lineno, stem))
                else:
                    # Dunder names are the package's own attributes; all else it has are modules.
                    names = [alias.name for alias in node.names if not alias.name.startswith("__")]
                    found += [(node.lineno, f"purerl.{name}") for name in names]
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if _last(function) in {"import_module", "__import__"}:
                    found.append((node.lineno, name))
    return found


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Return the public functions and classes, without overloads: these repeat the last one."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        node
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and not any(_last(decorator) == "overload" for decorator in node.decorator_list)
    ]


def _missing_docstrings(tree: ast.Module) -> list[str]:
    found = []
    for node in _public(tree):
        # A protocol of a function says what it means where its arguments are: in __call__.
        calls = [part for part in node.body if getattr(part, "name", "") == "__call__"]
        if not any(ast.get_docstring(place) for place in [node, *calls]):
            found.append(f"line {node.lineno}: {node.name} has no docstring")
    return found


def _bare_arrays(tree: ast.Module) -> list[str]:
    found = []
    for function in _public(tree):
        if isinstance(function, ast.ClassDef):
            continue
        inputs = function.args
        arguments = [
            *inputs.posonlyargs,
            *inputs.args,
            *inputs.kwonlyargs,
            inputs.vararg,
            inputs.kwarg,
        ]
        annotated = [(a.arg, a.annotation) for a in arguments if a] + [("the result", function.returns)]
        found += [
            f"line {function.lineno}: {name} of {function.name} is annotated as an array without "
            'a shape; use jaxtyping, as in Float[Array, "T N"]'
            for name, annotation in annotated
            if annotation and _is_bare(annotation)
        ]
    return found


def _is_bare(annotation: ast.AST) -> bool:
    match annotation:
        case ast.Subscript(value=value) if _last(value) in SHAPED | {"Callable", "Literal"}:
            return False
        case ast.Constant(value=str(text)):  # a forward reference
            return _is_bare(ast.parse(text, mode="eval").body)
        case ast.Name() | ast.Attribute():
            return _last(annotation) in ARRAYS
    return any(_is_bare(child) for child in ast.iter_child_nodes(annotation))


def _last(node: ast.AST) -> str:
    """Return the last name of a dotted name: ndarray of numpy.ndarray."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def test_every_file_keeps_the_house_rules():
    files = sorted(PACKAGE.rglob("*.py"))
    assert PACKAGE / "base.py" in files
    found = []
    for file in files:
        relative = PurePosixPath(file.relative_to(PACKAGE).as_posix())
        found += violations(relative, file.read_text(encoding="utf-8"))
    assert not found, "\n" + "\n".join(found)


# Each breaks one rule once; the words are from the sentence that must say so.
BROKEN = {
    "level 1 is not lower than 1": ("losses.py", "import purerl.returns", "not lower"),
    "higher": ("base.py", "from purerl.loop import train", "level 4"),
    "from the package": ("replay.py", "from purerl import base, rollout", "imports rollout"),
    "relative": ("networks.py", "from .agents.dqn import dqn", "imports agents"),
    "relative from the package": ("networks.py", "from . import loop", "imports loop"),
    "relative from a folder": ("envs/gym.py", "from ..loop import train", "imports loop"),
    "inside a function": ("returns.py", "def _f():\n    from purerl import envs", "imports envs"),
    "for types only": ("rollout.py", "if TYPE_CHECKING:\n    import purerl.loop", "imports loop"),
    "by name": ("base.py", "importlib.import_module('purerl.loop')", "imports loop"),
    "an agent and its environment": ("agents/dqn.py", "import purerl.envs", "must not import envs"),
    "an agent and the loop": ("agents/dqn.py", "from purerl import loop", "must not import loop"),
    "an agent and rollouts": ("agents/dqn.py", "from .. import rollout", "must not import rollout"),
    "an agent and its mesh": (
        "agents/dqn.py",
        "import purerl.sharding",
        "must not import sharding",
    ),
    "an agent and metrics": ("agents/dqn.py", "import purerl.metrics", "must not import metrics"),
    "an agent and another": ("agents/dqn.py", "from purerl.agents import sarsa", "one another"),
    "the loop and an agent": ("loop.py", "from purerl.agents import dqn", "must not import agents"),
    "the package's door": ("__init__.py", "from purerl.base import Agent", "__init__ imports"),
    "unknown import": (
        "loop.py",
        "from purerl.helpers import f",
        "purerl.helpers, which has no level",
    ),
    "unknown module": ("helpers.py", "", "helpers has no level"),
    "gymnax": ("loop.py", "import gymnax", "imports gymnax"),
    "gymnax from a function": ("cli.py", "def _f():\n    from gymnax.wrappers import x", "gymnax"),
    "gymnax in base": ("base.py", "import gymnax.environments.spaces as s", "imports gymnax"),
    "standard library": ("envs/queue.py", "", "queue is the name"),
    "standard library folder": ("types/x.py", "", "types is the name"),
    "function without docstring": (
        "base.py",
        "def zeros():\n    return 0",
        "zeros has no docstring",
    ),
    "protocol without docstring": (
        "base.py",
        "class F(Protocol):\n    def __call__(self): ...\n    def g(self):\n        'Doc.'",
        "F has no docstring",
    ),
    "class without docstring": ("base.py", "class Spec:\n    pass", "Spec has no docstring"),
    "jax array": ("losses.py", 'def f(x: jax.Array):\n    "Doc."', "x of f"),
    "numpy array": ("scores.py", 'def f(*, x: np.ndarray):\n    "Doc."', "x of f"),
    "jnp result": ("agents/dqn.py", 'def f() -> jnp.ndarray:\n    "Doc."', "the result of f"),
    "imported Array": ("loop.py", 'def f(*x: Array):\n    "Doc."', "x of f"),
    "array or none": ("losses.py", 'def f(x: jax.Array | None):\n    "Doc."', "x of f"),
    "array in a tuple": (
        "losses.py",
        'def f() -> tuple[Array, int]:\n    "Doc."',
        "the result of f",
    ),
    "array as a string": ("losses.py", "def f(x: 'np.ndarray'):\n    'Doc.'", "x of f"),
    "long agent": ("agents/dqn.py", "x = 1\n" * AGENT_LINES, "fewer than 200 lines"),
}


@pytest.mark.parametrize(("file", "code", "words"), BROKEN.values(), ids=BROKEN)
def test_the_checker_finds(file, code, words):
    found = [sentence for sentence in violations(PurePosixPath(file), code) if words in sentence]
    assert len(found) == 1


SOUND = {
    "lower": ("loop.py", "from purerl import __version__, base, rollout\nfrom .envs import grid"),
    "family": (
        "envs/grid.py",
        "from purerl.envs.spaces import box\nfrom . import tables\nimport gymnax",
    ),
    "gathering": ("agents/__init__.py", "from purerl.agents.dqn import dqn\nfrom . import sarsa"),
    "agent": (
        "agents/dqn.py",
        "import jax\nfrom purerl import losses, networks\n" + "x = 1\n" * 197,
    ),
    "private": ("losses.py", "def _f(x: jax.Array):\n    pass"),
    "shaped": (
        "losses.py",
        'def f(x: Float[Array, "T N"], y: "Key[jax.Array, \'\']"):\n    "Doc."',
    ),
    "key": ("losses.py", 'def f(key: PRNGKeyArray) -> Int[np.ndarray, ""] | None:\n    "Doc."'),
    "protocol": ("base.py", "class F(Protocol):\n    def __call__(self):\n        'Doc.'"),
    "overload": ("losses.py", "@typing.overload\ndef f(x: Array): ...\ndef f(x):\n    'Doc.'"),
    "function": ("networks.py", "def f(g: Callable[[Array], Array] | None):\n    'Doc.'"),
    "mode": ("losses.py", "def f(mode: Literal['Array']):\n    'Doc.'"),
    "level 5": ("cli.py", 'def f(x: jax.Array):\n    "Doc."'),
    "elsewhere": (
        "base.py",
        "import gymnasium\nfrom purerlish import loop\nimportlib.import_module(name)",
    ),
}


@pytest.mark.parametrize(("file", "code"), SOUND.values(), ids=SOUND)
def test_the_checker_lets_pass(file, code):
    assert violations(PurePosixPath(file), code) == []
