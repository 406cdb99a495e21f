"""The processes of a run: one, or those of ``torchrun`` or ``accelerate launch``.

Rank 0 decides on the ticket and broadcasts it, so that all processes train the same ticket. It writes weights
and checkpoints; the other processes read them from a shared file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


def processes() -> int:
    """Return the number of processes that the launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Join the process group if a launcher has started several processes. The Trainer uses the same group."""
    if processes() == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group()


def is_main() -> bool:
    """Return whether this process is rank 0, which decides, writes and prints; also before :func:`join`."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def wait() -> None:
    """Wait until all processes have called this function."""
    if dist.is_initialized():
        dist.barrier()


def main_first(part: Callable[[], T]) -> T:
    """Call a function on rank 0 first, then on the other processes; return its result.

    The other processes find the files that rank 0 has written.
    """
    if not is_main():
        wait()
    result = part()
    if is_main():
        wait()
    wait()
    return result


def from_main(decide: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on all processes."""
    if not dist.is_initialized():
        return decide()
    decided = [decide() if is_main() else None]
    dist.broadcast_object_list(decided, src=0)
    return cast("T", decided[0])


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1
