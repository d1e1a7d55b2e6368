"""Bad flags of the scripts and of purerl.play: what is typed, and what the one sentence on stderr says.

A flag is named by the module whose settings declare it first, so one that many scripts share stands here once. In the
arguments FILE is a file, FINISHED the folder of a finished run, POLICY that of a saved policy of two runs, and NOTHING
a folder that is not there.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

PLAY = "play"  # the program that is no script of experiments/

# So small that what is looked at before anything is trained takes no time.
TINY = {
    "q_learning": "--total-steps 40",
    "sarsa": "--total-steps 40",
    "dqn": "--total-steps 200 --num-envs 2 --learning-starts 40 --capacity 100 --batch-size 8 --hidden 8",
    "a2c": "--hidden 8",
    "ppo": "--length 4 --hidden 8",
    "reinforce": "--length 4 --hidden 8 --window 10",
    "q_actor_critic": "--length 4 --hidden 8",
    "trpo": "--length 8 --hidden 8",
    "pbt": "--length 4 --hidden 8",
    "tensor_parallel": "--mesh model=2 --width 8 --layers 1 --total-steps 1024",
    "tune": "--length 4 --hidden 8",
    "sweep_ppo": "--length 4 --hidden 8",
    "sweep_dqn": "--total-steps 200 --num-envs 2 --learning-starts 40 --capacity 100 --batch-size 8 --hidden 8",
}


class Row(NamedTuple):
    """One command line that is refused."""

    script: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]  # all of which stderr holds
    by_parser: bool  # told by tyro, in its own way, because text is not of the flag's type


def bad(script: str, arguments: str, *words: str) -> Row:
    """Return what purerl refuses in a sentence of its own."""
    return Row(script, tuple(shlex.split(arguments)), words, by_parser=False)


def untyped(script: str, arguments: str) -> Row:
    """Return what the parser refuses; it names the first flag of the arguments."""
    given = tuple(shlex.split(arguments))
    return Row(script, given, (given[0].removeprefix("--"),), by_parser=True)


def count(script: str, flag: str, name: str, least: int) -> tuple[Row, ...]:
    """Return what a flag that takes a whole number of at least `least` refuses."""
    return (
        bad(script, f"{flag} {least - 1}", f"{name} is {least - 1}; it takes a whole number", str(least)),
        untyped(script, f"{flag} 1.5"),
    )


def seed(script: str) -> tuple[Row, ...]:
    """Return what the seed of all keys refuses."""
    return (*count(script, "--seed", "seed", 0), bad(script, "--seed 4294967296", "seed is 4294967296; it takes"))


def folder(script: str) -> tuple[Row, ...]:
    """Return what the flag for the folder of results refuses."""
    return (
        bad(script, "--out FILE", "directory is ", "which is a file; it takes a folder"),
        bad(script, "--out FINISHED", "already holds a finished run"),
    )


def hypers(script: str, **others: str) -> tuple[Row, ...]:
    """Return what the numbers of any agent refuse, and `others` of this one's: name -> a value beyond its range."""
    own = tuple(
        bad(script, f"--hypers.{name.replace('_', '-')} {value}", f"hypers.{name} is ", "; it takes a ")
        for name, value in others.items()
    )
    return (bad(script, "--hypers.discount 1.5", "hypers.discount is 1.5"), *own)


def axes(script: str, group: str) -> tuple[Row, ...]:
    """Return what the bounds from which numbers are drawn refuse."""
    return (
        untyped(script, f"--{group}.discount low high"),
        bad(script, f"--{group}.discount 0.9", f"{group.replace('-', '_')}.discount has 1 values; it takes two"),
        bad(script, f"--{group}.discount 0.9 0.5", "low is 0.9", "high is 0.5"),
        bad(script, f"--{group}.discount 0.9 nan", "nan"),
        bad(
            script, f"--{group}.discount 0.5 1.5", f"{group.replace('-', '_')}.discount is 1.5; it takes a number from"
        ),
        bad(script, f"--{group}.learning-rate-horizon 0 9", "learning_rate_horizon has a 0"),
    )


def grid(script: str) -> tuple[Row, ...]:
    """Return what the values of a sweep's axes refuse."""
    return (
        untyped(script, "--sweep.discount low"),
        bad(script, "--sweep.learning-rate nan", "learning_rate is ", "an axis takes a list of finite numbers"),
        bad(script, "--sweep.learning-rate 1e-3 -1e-3", "sweep.learning_rate is -0.001; it takes a number of at least"),
        bad(script, "--sweep.discount 0.9 1.1", "sweep.discount is 1.1; it takes a number from 0 to 1"),
        bad(script, "--sweep.learning-rate-horizon 0", "sweep.learning_rate_horizon has a 0"),
    )


def static(script: str) -> tuple[Row, ...]:
    """Return what the values of static choices refuse."""
    return (
        bad(script, "--static.num-envs 2 x", "static.num_envs has 'x'; it takes what --num-envs does"),
        bad(script, "--static.num-envs 0", "num_envs is 0"),
        bad(script, "--static.num-envs 4 4", "static.num_envs has 4 4; it takes each value once"),
        bad(script, "--static.hidden 8,x", "static.hidden has '8,x'; it takes what --hidden does"),
        bad(script, "--static.env Maze-purerl --env-params.gravity 3", "env_params are given, and static.env"),
    )


def over_a_mesh(script: str) -> dict[str, tuple[Row, ...]]:
    """Return what the mesh and the groups of a script with four environments refuse."""
    return {
        f"{script}.mesh": (
            bad(script, "--mesh data=3", "num_envs is 4 and mesh is data=3; it takes a multiple of 3"),
            bad(script, "--mesh model=99", "mesh is run 1 x data 1 x model 99; there are "),
        ),
        f"{script}.groups": (
            bad(script, "--groups 3", "num_envs is 4 and groups is 3; it takes a multiple of 3"),
            untyped(script, "--groups all"),
        ),
    }


ROWS: dict[str, tuple[Row, ...]] = {
    # --- what all scripts share ---
    "cli.env": (
        bad("q_learning", "--env CliffWaking-purerl", "did you mean CliffWalking-purerl"),
        bad("q_learning", "--env ''", "env"),
        bad("dqn", "--env Pendulum-v1", "needs a discrete action space"),
        bad("sarsa", "--env CartPole-v1", "sarsa needs a discrete observation space"),
        bad("q_actor_critic", "--env Pendulum-v1", "needs a discrete action space"),
    ),
    "cli.num_envs": count("dqn", "--num-envs", "num_envs", 1),
    "cli.length": (
        *count("q_learning", "--length", "length", 1),
        bad("q_learning", "--length 2147483648", "length is 2147483648; it takes a whole number from 1 to 2**31 - 1"),
    ),
    "cli.observation_dtype": (
        untyped("q_learning", "--observation-dtype float64"),
        bad("q_learning", "--observation-dtype bfloat16", "is observed as an integer, no array"),
        bad("q_learning", "--observation-dtype bool", "is observed as an integer, no array"),
        bad("dqn", "--observation-dtype bool", "does not hold all that CartPole-v1 shows"),
    ),
    "cli.total_steps": (
        *count("q_learning", "--total-steps", "total_steps", 1),
        bad("dqn", "--total-steps 30", "learning_starts is 40; it takes 1 to total_steps - 1 = 29"),
    ),
    "cli.seeds": count("q_learning", "--seeds", "seeds", 1),
    "cli.seed": seed("q_learning"),
    "cli.eval_every": (
        *count("q_learning", "--eval-every", "eval_every", 0),
        bad("sweep_ppo", "--eval-every 7", "eval_every is 7; a sweep evaluates at the end"),
    ),
    "cli.eval_episodes": count("q_learning", "--eval-episodes", "eval_episodes", 1),
    "cli.eval_max_steps": count("q_learning", "--eval-max-steps", "eval_max_steps", 1),
    "cli.log_every": (
        *count("q_learning", "--log-every", "log_every", 1),
        bad("sweep_ppo", "--log-every 7", "log_every is set; a sweep has up to a hundred rows"),
    ),
    "cli.stop_at_return": (
        bad("q_learning", "--stop-at-return nan", "stop_at_return is nan"),
        untyped("q_learning", "--stop-at-return best"),
        bad("sweep_ppo", "--stop-at-return 7", "stop_at_return is set; a sweep runs every point to its end"),
    ),
    "cli.out": (
        *folder("q_learning"),
        bad("q_learning", "--out FILE/run", "Not a directory"),
        *[row for script in ("cliff_walking", "compare", "optimal_policy", "textbook") for row in folder(script)],
        *[row for script in ("pendulum_truncation", "precision", "pbt", "sweep_ppo", "tune") for row in folder(script)],
        *folder("tensor_parallel"),
    ),
    "cli.devices": (
        bad("q_learning", "--devices 0", "devices is 0; it takes a whole number of at least 1"),
        bad("q_learning", "--devices 99", "devices is 99; there are "),
        untyped("q_learning", "--devices all"),
    ),
    "cli.mesh": (
        bad("q_learning", "--mesh 8", "mesh is '8'; it takes sizes of its axes data, model and run, as data=4,model=2"),
        bad("q_learning", "--mesh data=99 --num-envs 99", "mesh is run 1 x data 99 x model 1; there are "),
        bad("q_learning", "--mesh data=2 --num-envs 3", "num_envs is 3 and mesh is data=2; it takes a multiple of 2"),
        bad("q_learning", "--mesh data=2 --num-envs 2 --debug-nans", "debug_nans is True and mesh is data=2"),
        bad("q_learning", "--mesh data=2 --num-envs 2 --devices 1", "devices is 1 and a layout is given"),
        bad("q_learning", "--mesh run=2 --seeds 3", "seeds is 3 and mesh is run=2; it takes a multiple of 2"),
        bad(
            "a2c", "--mesh model=2 --hidden 7 7 --num-envs 2", "of which 7 is not divided by the 2 devices along model"
        ),
        bad("ppo", "--mesh data=2 --minibatches 3 --num-envs 4 --length 4", "minibatches is 3, which does not divide"),
        bad("dqn", "--mesh data=2 --batch-size 7", "batch_size is 7, which the 2 groups of environments do not divide"),
    ),
    **over_a_mesh("pendulum_truncation"),
    **over_a_mesh("precision"),
    "cli.groups": (
        bad("q_learning", "--groups 0", "groups is 0; it takes a whole number of at least 1"),
        bad("q_learning", "--groups 3 --num-envs 4", "num_envs is 4 and groups is 3; it takes a multiple of 3"),
        bad(
            "q_learning",
            "--groups 3 --num-envs 3 --mesh data=2",
            "groups is 3 and mesh is data=2; it takes a multiple of 2",
        ),
        untyped("q_learning", "--groups all"),
    ),
    "cli.together": count("q_learning", "--together", "together", 1),
    "cli.memory": (
        bad("q_learning", "--memory 0", "memory is 0.0; it takes a positive number of GiB"),
        bad("q_learning", "--memory nan", "memory is nan; it takes a positive number of GiB"),
        bad("q_learning", "--memory inf", "memory is inf; it takes a positive number of GiB"),
        untyped("q_learning", "--memory 4GB"),
    ),
    "cli.checkpoint_every": (
        *count("q_learning", "--checkpoint-every", "checkpoint_every", 0),
        bad("sweep_ppo", "--checkpoint-every 7", "checkpoint_every is 7; here whole runs are kept"),
        bad("tune", "--checkpoint-every 7", "checkpoint_every is 7; here whole runs are kept"),
    ),
    "cli.resume": (
        bad("q_learning", "--resume auto", "resume is auto and out is not given"),
        bad("q_learning", "--resume NOTHING", "which holds no run"),
        bad("q_learning", "--resume NOTHING --out FINISHED", "a run goes on where it is"),
        *[
            bad(script, "--resume NOTHING", "resume is ", "which holds no run")
            for script in ("cliff_walking", "compare", "optimal_policy", "pendulum_truncation", "precision", "textbook")
        ],
        *[bad(script, "--resume NOTHING", "which holds no run") for script in ("pbt", "sweep_ppo", "sweep_dqn")],
        bad("tensor_parallel", "--resume NOTHING", "which holds no run"),
        bad("sweep_ppo", "--resume NOTHING --static.num-envs 2 4", "which holds no run (settings.json)"),
        bad("tune", "--resume NOTHING", "which holds no run (settings.json)"),
        bad("tune", "--resume NOTHING --search.worker 1", "which holds no run (journal.log)"),
        bad("tune", "--resume auto", "resume is auto and out is not given"),
        bad("compare", "--resume FINISHED --out NOTHING", "resume is ", "a run goes on where it is"),
        bad("textbook", "--resume FINISHED", "holds a run with runs None, and this one has 2000"),
    ),
    "cli.debug_nans": (bad("sweep_ppo", "--debug-nans", "debug_nans is True; it is for scripts that train one agent"),),
    "cli.env_params": (
        untyped("q_learning", "--env-params.gravity 3"),
        untyped("dqn", "--env-params.gravity low"),
        bad("dqn", "--env-params.gravity nan", "env_params.gravity is nan; CartPole-v1 takes"),
        bad("dqn", "--env-params.gravity inf", "env_params.gravity is inf; CartPole-v1 takes"),
        bad("dqn", "--env-params.max-steps-in-episode 0", "max_steps_in_episode is 0; an episode takes"),
        bad("dqn", "--env-params.max-steps-in-episode 1000000000000", "max_steps_in_episode is 1000000000000"),
    ),
    # --- of agents with a policy ---
    "policy_cli.filters": (
        bad("ppo", "--filters 16", "convolutions take images"),
        bad("ppo", "--env Breakout-MinAtar --no-normalize-observations --filters 0", "filters is (0,)"),
        untyped("ppo", "--filters many"),
    ),
    "policy_cli.hidden": (
        bad("ppo", "--hidden 8 0", "hidden is (8, 0); each layer takes at least 1"),
        bad("ppo", "--hidden -1", "hidden is (-1,); each layer takes at least 1"),
        untyped("ppo", "--hidden 8,8"),
    ),
    "policy_cli.blocks": (
        bad("ppo", "--blocks residual --hidden 8 4", "hidden is (8, 4); residual blocks take one width or more"),
        untyped("ppo", "--blocks convolutional"),
    ),
    "policy_cli.heads": (
        *count("ppo", "--heads", "heads", 1),
        bad("ppo", "--blocks transformer --heads 3", "heads is 3; it takes a divisor of the blocks' width, which is 8"),
    ),
    "policy_cli.activation": (untyped("ppo", "--activation sigmoid"), untyped("ppo", "--activation 3")),
    "policy_cli.shared_torso": (
        bad("reinforce", "--shared-torso", "shared_torso is True; reinforce takes networks that are apart"),
    ),
    "policy_cli.squash": (bad("a2c", "--squash", "squash takes an action space with finite bounds"),),
    "policy_cli.normalize_observations": (
        bad("ppo", "--env FrozenLake-misc --normalize-observations", "takes some that are arrays"),
    ),
    # --- of single scripts ---
    "a2c.hypers": hypers("a2c", trace_decay="-0.1", value_weight="-1", entropy_weight="-1", adam_b1="1"),
    "ppo.hypers": hypers("ppo", trace_decay="1.1", clip="-0.2", max_kl="-1", rate_adaptation="0.5", adam_b2="-0.1"),
    "ppo.epochs": count("ppo", "--epochs", "epochs", 1),
    "ppo.minibatches": (
        *count("ppo", "--minibatches", "minibatches", 1),
        bad("ppo", "--minibatches 3", "minibatches is 3, which does not divide the 16 steps"),
    ),
    "ppo.normalize_advantages": (
        bad("ppo", "--normalize-advantages --minibatches 16", "of one step each: normalize_advantages takes two or"),
    ),
    "reinforce.window": count("reinforce", "--window", "window", 1),
    "reinforce.hypers": hypers("reinforce", value_weight="-1", learning_rate_horizon="-1"),
    "q_actor_critic.hidden": (
        bad("q_actor_critic", "--hidden 8 0", "hidden is (8, 0); each layer takes at least 1"),
        untyped("q_actor_critic", "--hidden wide"),
    ),
    "q_actor_critic.activation": (
        untyped("q_actor_critic", "--activation sigmoid"),
        untyped("q_actor_critic", "--activation 3"),
    ),
    "q_actor_critic.hypers": hypers("q_actor_critic", critic_speed="-1", max_gradient_norm="0"),
    "trpo.cg_iterations": count("trpo", "--cg-iterations", "cg_iterations", 1),
    "trpo.max_backtracks": count("trpo", "--max-backtracks", "max_backtracks", 1),
    "trpo.critic_epochs": count("trpo", "--critic-epochs", "critic_epochs", 1),
    "trpo.critic_minibatches": (
        *count("trpo", "--critic-minibatches", "critic_minibatches", 1),
        bad("trpo", "--critic-minibatches 5", "critic_minibatches is 5, which does not divide the 32 steps"),
    ),
    "trpo.hypers": hypers("trpo", delta="-0.01", damping="-1", backtrack_coefficient="1.5"),
    "q_learning.hypers": (
        *hypers("q_learning", exploration="1.5", initial_value="inf"),
        untyped("q_learning", "--hypers.learning-rate fast"),
        bad("q_learning", "--hypers.learning-rate nan", "Hypers.learning_rate is nan; it takes a number"),
        bad("q_learning", "--hypers.learning-rate inf", "hypers.learning_rate is inf; it takes a number of at least 0"),
        bad("q_learning", "--hypers.learning-rate -0.1", "hypers.learning_rate is -0.1; it takes a number of at least"),
    ),
    "sarsa.hypers": hypers("sarsa", exploration="1.5"),
    "dqn.filters": (
        bad("dqn", "--filters 16", "convolutions take images"),
        bad("dqn", "--env Breakout-MinAtar --filters 0", "filters is (0,)"),
        untyped("dqn", "--filters many"),
    ),
    "dqn.hidden": (
        bad("dqn", "--hidden 8 0", "hidden is (8, 0); each layer takes at least 1"),
        untyped("dqn", "--hidden wide"),
    ),
    "dqn.blocks": (
        bad("dqn", "--blocks residual --hidden 8 4", "hidden is (8, 4); residual blocks take one width or more"),
        untyped("dqn", "--blocks convolutional"),
    ),
    "dqn.heads": (
        *count("dqn", "--heads", "heads", 1),
        bad("dqn", "--blocks transformer --heads 3", "heads is 3; it takes a divisor of the blocks' width, which is 8"),
    ),
    "dqn.n_step": (
        *count("dqn", "--n-step", "n_step", 1),
        bad("dqn", "--n-step 50", "capacity is 100"),
    ),
    "dqn.explore": (
        untyped("dqn", "--explore greedy"),
        bad("dqn", "--explore ucb", "ucb, which counts visits, needs a discrete"),
    ),
    "dqn.schedule": (untyped("dqn", "--schedule cosine"), untyped("dqn", "--schedule 3")),
    "dqn.capacity": (
        *count("dqn", "--capacity", "capacity", 1),
        bad("dqn", "--capacity 101", "capacity is 101, which the 2 environments"),
    ),
    "dqn.batch_size": count("dqn", "--batch-size", "batch_size", 1),
    "dqn.updates": count("dqn", "--updates", "updates", 1),
    "dqn.learning_starts": (
        bad("dqn", "--learning-starts 0", "learning_starts is 0; it takes 1 to total_steps - 1"),
        bad("dqn", "--learning-starts 200", "learning_starts is 200; it takes 1 to total_steps - 1"),
        untyped("dqn", "--learning-starts soon"),
    ),
    "dqn.precision": (
        untyped("dqn", "--precision half"),
        untyped("sweep_dqn", "--precision float64"),
        bad("sweep_dqn", "--static.precision half", "static.precision has 'half'; it takes what --precision does"),
    ),
    "q_actor_critic.precision": (
        untyped("q_actor_critic", "--precision half"),
        untyped("q_actor_critic", "--precision int8"),
    ),
    "policy_cli.precision": (
        untyped("ppo", "--precision half"),
        untyped("trpo", "--precision float64"),
        bad("trpo", "--precision float16", "actor or torso computes in float16", "trpo takes float32 or bfloat16"),
        bad("sweep_ppo", "--static.precision half", "static.precision has 'half'; it takes what --precision does"),
    ),
    "dqn.hypers": hypers(
        "dqn", exploration_start="1.5", target_rate="1.1", target_period="0", huber_delta="-1", exploration_end="-0.1"
    ),
    # --- of scripts that make one claim ---
    "cliff_walking.seeds": count("cliff_walking", "--seeds", "seeds", 2),
    "cliff_walking.episodes": count("cliff_walking", "--episodes", "episodes", 10),
    "cliff_walking.seed": seed("cliff_walking"),
    "cliff_walking.hypers": hypers("cliff_walking", exploration="1.5"),
    "compare.env": (bad("compare", "--env CartPol-v1", "did you mean CartPole-v1"), bad("compare", "--env ''", "env")),
    "compare.total_steps": count("compare", "--total-steps", "total_steps", 1),
    "compare.seeds": count("compare", "--seeds", "seeds", 1),
    "compare.seed": seed("compare"),
    "compare.precision": (untyped("compare", "--precision half"), untyped("compare", "--precision int8")),
    "optimal_policy.env": (
        bad("optimal_policy", "--env CartPole-v1", "'CartPole-v1' cannot be enumerated"),
        bad("optimal_policy", "--env FrozenLak", "did you mean FrozenLake-misc"),
    ),
    "optimal_policy.discount": (
        bad("optimal_policy", "--discount -1", "discount is -1.0; it takes a number from 0 to 1"),
        bad("optimal_policy", "--discount 1.01", "discount is 1.01; it takes a number from 0 to 1"),
        bad("optimal_policy", "--discount nan", "discount is nan; it takes a number from 0 to 1"),
        bad("optimal_policy", "--env JumpingGridworld-purerl --discount 1", "no policy ever comes to a terminal state"),
        untyped("optimal_policy", "--discount much"),
    ),
    "pendulum_truncation.seeds": count("pendulum_truncation", "--seeds", "seeds", 2),
    "pendulum_truncation.total_steps": (
        *count("pendulum_truncation", "--total-steps", "total_steps", 1),
        bad("pendulum_truncation", "--total-steps 7999", "total_steps is 7999; it takes ten episodes in each"),
    ),
    "pendulum_truncation.num_envs": (
        *count("pendulum_truncation", "--num-envs", "num_envs", 1),
        bad("pendulum_truncation", "--num-envs 51", "total_steps is 100000; it takes ten episodes in each"),
    ),
    "pendulum_truncation.length": (
        *count("pendulum_truncation", "--length", "length", 1),
        bad("pendulum_truncation", "--length 3", "critic_minibatches is 8, which does not divide the 12 steps"),
    ),
    "pendulum_truncation.seed": seed("pendulum_truncation"),
    "pendulum_truncation.precision": (
        untyped("pendulum_truncation", "--precision half"),
        bad("pendulum_truncation", "--precision float16", "trpo takes float32 or bfloat16"),
    ),
    "pendulum_truncation.checkpoint_every": count("pendulum_truncation", "--checkpoint-every", "checkpoint_every", 0),
    "pendulum_truncation.hypers": (
        *hypers("pendulum_truncation", trace_decay="1.1"),
        bad(
            "pendulum_truncation", "--hypers.discount 1", "hypers.discount is 1.0; without an end it takes one below 1"
        ),
    ),
    "precision.env": (
        bad("precision", "--env CartPol-v1", "did you mean CartPole-v1"),
        bad("precision", "--env ''", "env"),
        bad("precision", "--env Pendulum-v1", "env is Pendulum-v1; it takes one with discrete actions"),
    ),
    "precision.total_steps": count("precision", "--total-steps", "total_steps", 1),
    "precision.seeds": count("precision", "--seeds", "seeds", 2),
    "precision.seed": seed("precision"),
    "precision.eval_episodes": count("precision", "--eval-episodes", "eval_episodes", 1),
    "precision.checkpoint_every": count("precision", "--checkpoint-every", "checkpoint_every", 0),
    "tensor_parallel.env": (
        bad("tensor_parallel", "--env CartPol-v1", "did you mean CartPole-v1"),
        bad("tensor_parallel", "--env ''", "env"),
    ),
    "tensor_parallel.total_steps": count("tensor_parallel", "--total-steps", "total_steps", 1),
    "tensor_parallel.seeds": count("tensor_parallel", "--seeds", "seeds", 2),
    "tensor_parallel.seed": seed("tensor_parallel"),
    "tensor_parallel.width": (
        *count("tensor_parallel", "--width", "width", 1),
        bad("tensor_parallel", "--width 7", "width is 7 and mesh is model=2; it takes a multiple of its model, 2"),
    ),
    "tensor_parallel.layers": count("tensor_parallel", "--layers", "layers", 1),
    "tensor_parallel.blocks": (
        untyped("tensor_parallel", "--blocks recurrent"),
        untyped("tensor_parallel", "--blocks ''"),
    ),
    "tensor_parallel.heads": (
        *count("tensor_parallel", "--heads", "heads", 1),
        bad("tensor_parallel", "--blocks transformer --heads 1", "heads is 1 and mesh is model=2; it takes a multiple"),
        bad("tensor_parallel", "--blocks transformer --heads 6", "heads is 6; it takes a divisor of the blocks' width"),
    ),
    "tensor_parallel.mesh": (
        bad("tensor_parallel", "--mesh 2x4", "mesh is '2x4'; it takes sizes of its axes data, model and run"),
        bad("tensor_parallel", "--mesh data=0", "mesh is 'data=0'; it takes sizes of its axes"),
        bad("tensor_parallel", "--mesh data=16,model=8", "mesh is run 1 x data 16 x model 8; there are "),
        bad("tensor_parallel", "--mesh data=3", "mesh is data=3; its data takes a divisor of the 16 environments"),
        bad("tensor_parallel", "--mesh run=2", "mesh is run=2; one run has all of it here: it takes sizes of data and"),
    ),
    "tensor_parallel.groups": (
        *(bad("tensor_parallel", f"--groups {size}", f"groups is {size}; it takes a divisor of") for size in (0, 3)),
        bad(
            "tensor_parallel",
            "--mesh data=2 --groups 1",
            "groups is 1; it takes a divisor of the 16 environments and a",
        ),
        untyped("tensor_parallel", "--groups 1.5"),
    ),
    "tensor_parallel.hypers": hypers("tensor_parallel", trace_decay="1.1"),
    "textbook.runs": count("textbook", "--runs", "runs", 8),
    "textbook.seed": seed("textbook"),
    # --- of scripts that sweep or search ---
    "sweep_dqn.sweep": (
        *grid("sweep_dqn"),
        bad("sweep_dqn", "--sweep.exploration-start 0.5 2", "exploration_start is 2.0; it takes a number from 0 to 1"),
        bad("sweep_dqn", "--sweep.target-period 0 9", "sweep.target_period is 0.0; it takes a number above 0"),
    ),
    "sweep_dqn.static": static("sweep_dqn"),
    "sweep_ppo.sweep": grid("sweep_ppo")[:2],
    "sweep_ppo.static": static("sweep_ppo")[:2],
    "pbt.members": count("pbt", "--members", "members", 2),
    "pbt.generations": count("pbt", "--generations", "generations", 1),
    "pbt.quantile": (
        bad("pbt", "--quantile 0.6", "quantile is 0.6; it takes a number from 0 to 0.5"),
        bad("pbt", "--quantile -0.1", "quantile is -0.1; it takes a number from 0 to 0.5"),
        bad("pbt", "--quantile nan", "quantile is nan; it takes a number from 0 to 0.5"),
        bad("pbt", "--quantile 0.01", "quantile is 0.01; of 16 members that is none"),
        untyped("pbt", "--quantile half"),
    ),
    "pbt.factor": (
        bad("pbt", "--factor 0.5", "factor is 0.5; it takes a number of at least 1"),
        bad("pbt", "--factor nan", "factor is nan; it takes a number of at least 1"),
        bad("pbt", "--factor inf", "factor is inf; it takes a number of at least 1"),
        untyped("pbt", "--factor much"),
    ),
    "pbt.resample": (
        bad("pbt", "--resample 1.5", "resample is 1.5; it takes a number from 0 to 1"),
        bad("pbt", "--resample -1", "resample is -1.0; it takes a number from 0 to 1"),
        bad("pbt", "--resample nan", "resample is nan; it takes a number from 0 to 1"),
        untyped("pbt", "--resample often"),
    ),
    "pbt.log_uniform": (
        *axes("pbt", "log-uniform")[:2],
        bad("pbt", "--log-uniform.discount 0 1", "low is 0.0; a log-uniform distribution takes a positive number"),
    ),
    "pbt.uniform": (
        *axes("pbt", "uniform"),
        bad("pbt", "--uniform.clip 0 1 --log-uniform.clip 0.1 1", "clip has two distributions; it takes one"),
    ),
    "tune.log_uniform": axes("tune", "log-uniform")[3:],
    "tune.uniform": axes("tune", "uniform")[:3],
    "tune.choice": (
        untyped("tune", "--choice.discount low"),
        bad("tune", "--choice.discount nan", "nan"),
        bad("tune", "--choice.discount 0.9 1.5", "choice.discount is 1.5; it takes a number from 0 to 1"),
        bad("tune", "--choice.discount 0.9 --uniform.discount 0 1", "discount has two distributions; it takes one"),
    ),
    "tune_cli.trials": count("tune", "--search.trials", "search.trials", 1),
    "tune_cli.batch": count("tune", "--search.batch", "search.batch", 1),
    "tune_cli.name": (bad("tune", "--search.name ''", "search.name is ''; it takes the name"),),
    "tune_cli.storage": (
        bad("tune", "--search.storage nonsense://here", "search.storage is ", "nonsense"),
        bad(
            "tune", "--search.storage nonsense://here --search.worker 3 --out NOTHING", "search.storage is ", "nonsense"
        ),
        bad("tune", "--search.storage FILE/journal.log", "search.storage is "),
    ),
    "tune_cli.worker": (
        *count("tune", "--search.worker", "search.worker", 0),
        bad("tune", "--search.worker 2", "out is not given, and this is worker 2"),
    ),
    "tune_cli.patience": (
        bad("tune", "--search.patience 0.1", "search.patience is 0.1; it takes at least 0.5 seconds"),
        bad("tune", "--search.patience nan", "search.patience is nan; it takes"),
        untyped("tune", "--search.patience long"),
    ),
    "tune_cli.submit": (untyped("tune", "--search.submit cloud"), untyped("tune", "--search.submit 3")),
    "tune_cli.workers": count("tune", "--search.workers", "search.workers", 1),
    "tune_cli.cpus": count("tune", "--search.cpus", "search.cpus", 1),
    "tune_cli.minutes": count("tune", "--search.minutes", "search.minutes", 1),
    # --- of python -m purerl.play ---
    "play.run_dir": (
        bad(PLAY, "NOTHING", "nothing"),
        bad(PLAY, "FINISHED", "policy.zip"),
        bad(PLAY, "FILE", "file"),
        Row(PLAY, (), ("a run directory, or a policy's file (required)",), by_parser=True),
    ),
    "play.episodes": tuple(
        row._replace(arguments=("POLICY", *row.arguments)) for row in count(PLAY, "--episodes", "episodes", 1)
    ),
    "play.seed": tuple(row._replace(arguments=("POLICY", *row.arguments)) for row in seed(PLAY)),
    "play.run": (
        bad(PLAY, "POLICY --run 2", "run is 2;", "holds 2 runs"),
        bad(PLAY, "POLICY --run -1", "run is -1;"),
        Row(PLAY, ("POLICY", "--run", "first"), ("--run",), by_parser=True),
    ),
    "play.max_steps": tuple(
        row._replace(arguments=("POLICY", *row.arguments)) for row in count(PLAY, "--max-steps", "max_steps", 1)
    ),
    "play.gif": (
        bad(PLAY, "POLICY --gif FILE/episode.gif", "gif is ", "it takes"),
        bad(PLAY, "POLICY --gif POLICY", "gif is ", "it takes a file"),
    ),
}

# Flags that are there or not, and nothing can be wrong with either.
EITHER = {
    "policy_cli.scale_returns": "rewards of every environment can be scaled",
    "reinforce.baseline": "both suit every environment",
    "reinforce.discount_states": "both suit every environment",
    "dqn.dueling": "both suit every environment",
    "dqn.double": "both suit every environment",
}
# Flags with but one thing to get wrong.
FEW = {
    "cli.debug_nans": "there or not",
    "policy_cli.shared_torso": "there or not",
    "policy_cli.squash": "there or not",
    "policy_cli.normalize_observations": "there or not",
    "ppo.normalize_advantages": "there or not",
    "tune_cli.name": "any text that is not empty names a study",
}
