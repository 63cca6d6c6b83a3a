"""Joins the processes of a run by the variables that torchrun sets."""

from __future__ import annotations

import os

from fastt2i.engine.distributed.world import World
from fastt2i.errors import UserError

#: Environment variables that torchrun sets for every process.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
#: Of programs that start several processes without them, the variable that says how many.
OTHER_LAUNCHERS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}


def join() -> World:
    """The processes that this one belongs to.

    Raises:
        UserError: the variables that torchrun sets are incomplete, or the other processes cannot be reached; or there
            are none, but several processes all the same.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(os.environ):
        _check_that_it_is_alone()
        return World()
    if os.environ.get("WORLD_SIZE", "").strip() == "1":  # alone, whatever else a job system sets or leaves out
        return World(restarted=_restarted())
    missing = [name for name in VARIABLES if name != "LOCAL_RANK" and not os.environ.get(name)]
    if missing:
        found = next(name for name in VARIABLES if os.environ.get(name))
        raise UserError(
            f"the environment has {found}, as for one of several processes, but not {', '.join(missing)}: start them "
            f"with torchrun, which sets all, or unset {found} to run in one process"
        )
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    # Job systems with one process a machine leave LOCAL_RANK out.
    local_rank = _number("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else 0
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank}; of WORLD_SIZE {size} processes it must be at least 0 and less than {size}")
    from fastt2i.engine.distributed.ranks import Ranks  # imports torch, which --help does without

    return Ranks(rank, size, local_rank, address=os.environ["MASTER_ADDR"], port=port, restarted=_restarted())


def _check_that_it_is_alone() -> None:
    for launcher, variable in OTHER_LAUNCHERS.items():
        number = os.environ.get(variable, "").strip()
        if number.isdecimal() and int(number) > 1:
            raise UserError(
                f"{launcher} started {number} processes, each of which would train alone, as RANK is not set: have it "
                f"start one torchrun on each node, or unset {variable} to run in one process"
            )


def _restarted() -> bool:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name} is {os.environ[name]!r} in the environment; torchrun sets it to a number") from None
