"""The processes of a run: one, or those that ``torchrun`` or ``accelerate launch`` started.

Rank 0 decides on the ticket and sends it to the others, so all of them train the same one. Weights and
checkpoints it writes, and the others read them: they share a file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


def join() -> None:
    """Meet the other processes, if a launcher says that there are some; the Trainer uses the same group."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group()


def is_main() -> bool:
    """Whether this process decides and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def main_first(part: Callable[[], T]) -> T:
    """Carry out a part on rank 0, and on the others once its files are there."""
    if not is_main():
        wait()
    result = part()
    if is_main():
        wait()
    wait()
    return result


def from_main(decide: Callable[[], T]) -> T:
    """What rank 0 decides, sent to the others."""
    if not dist.is_initialized():
        return decide()
    decided = [decide() if is_main() else None]
    dist.broadcast_object_list(decided, src=0)
    return cast("T", decided[0])


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1
