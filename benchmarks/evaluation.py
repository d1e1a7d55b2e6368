"""What evaluating costs: DQN and Q-learning by their experiments' defaults, with evaluations and without."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _measure import record

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def experiment(name: str):
    """Load an experiment script as a module."""
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_seconds(module, settings) -> float:
    """Return the seconds that a run took, compilation left out, as its summary has them."""
    from purerl import results

    with tempfile.TemporaryDirectory() as folder:
        module.main(dataclasses.replace(settings, out=Path(folder) / "run"))
        return results.load_run(Path(folder) / "run").summary["seconds"]["run"]


def main() -> None:
    """Time both, in turn: DQN three times, the tables, which take a twentieth of a second, more often."""
    for name, repeats in {"dqn": 3, "q_learning": 15, "sarsa": 15}.items():
        module = experiment(name)
        settings = module.Settings()
        pairs = []
        for _ in range(repeats):
            pairs.append(
                (run_seconds(module, settings), run_seconds(module, dataclasses.replace(settings, eval_every=0)))
            )
        shares = [with_evaluation / without - 1 for with_evaluation, without in pairs]
        record(
            "evaluation",
            {
                "case": name,
                "seconds_with": round(statistics.median(pair[0] for pair in pairs), 3),
                "seconds_without": round(statistics.median(pair[1] for pair in pairs), 3),
                "evaluation_over_training": round(statistics.median(shares), 4),
            },
        )


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
