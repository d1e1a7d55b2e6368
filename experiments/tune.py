"""Search for PPO's numbers with Optuna: trials in whole batches, by as many workers as are started.

python experiments/tune.py --log-uniform.learning-rate 1e-5 1e-2 --uniform.entropy-weight 0 0.05
python experiments/tune.py --out SAME_FOLDER --search.worker 1      # another process, or machine, that helps
python experiments/tune.py --out FOLDER --search.submit slurm --search.workers 8

A worker that was killed goes on when it is started again. Where slurm starts the workers, SBATCH_PARTITION and its like
say where. Several machines that share no folder take a database: --search.storage postgresql+psycopg://...
"""

from __future__ import annotations

import dataclasses

import ppo  # the script beside this one: its settings, and how they make an agent

from purerl import cli, points, results, sweep_cli, tune_cli
from purerl.agents import ppo as agent

Axes = sweep_cli.axes(agent.Hypers)
USUAL = {"learning_rate": points.log_uniform(1e-5, 1e-2), "entropy_weight": points.uniform(0.0, 0.05)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ppo.Settings):
    """The flags: those of ppo.py, the search, and from what each number is drawn."""

    total_steps: int = 50_000
    seeds: int = 2
    search: tune_cli.Search = tune_cli.Search()
    log_uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    choice: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]


def main(settings: Settings) -> results.Result | None:
    """Work on the study, and as worker 0 write the folder."""
    return tune_cli.run(
        settings,
        ppo.phases,
        agent="ppo",
        hypers=lambda settings: cli.annealed(settings, settings.hypers),
        usual=USUAL,
    )


if __name__ == "__main__":
    cli.start(main, Settings)
