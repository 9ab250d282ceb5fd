"""One process or many: torch.distributed as torchrun or Slurm starts it, without a trainer framework.

torchrun --nproc-per-node 2 -m dseq_jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/
"""

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as with_gradient
from torch.distributed.rendezvous import rendezvous

from dseq_jepa.config import ComputeSettings
from dseq_jepa.errors import UserError

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def share(self, global_count: int, what: str) -> int:
        """This rank's part of a global count, which the number of ranks must divide."""
        if global_count % self.size:
            raise UserError(f"{what} {global_count} cannot be shared equally by {self.size} ranks; change either")
        return global_count // self.size


def start(compute: ComputeSettings, prepare: Callable[[], object] = lambda: None) -> World:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK) and set the threads.

    Args:
        compute: device and threads.
        prepare: what may take hours on one node and seconds on another, such as staging data; run before the group
            exists, whose time-outs are minutes.

    """
    torch.set_num_threads(compute.threads)
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but torch sees no GPU on this machine; set compute.device: cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = (
        torch.device(compute.device, int(os.environ.get("LOCAL_RANK", "0")))
        if compute.device == "cuda"
        else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        store, rank, _ = next(rendezvous("env://"))
        prepare()
        _wait_for_all(store, rank, size)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    else:
        prepare()
    return World(rank=int(os.environ.get("RANK", "0")), size=size, device=device)


def _wait_for_all(store: dist.distributed_c10d.Store, rank: int, size: int) -> None:
    """Return once every rank is prepared, however long that takes; whoever started the ranks ends all when one dies."""
    store.set(f"prepared/{rank}", "")
    store.wait([f"prepared/{other}" for other in range(size)], timedelta(days=1))


def stop() -> None:
    """Leave the process group, if one was joined.

    A DistributedDataParallel that is collected later would end the group itself, and join gloo's threads while it holds
    the interpreter that they wait for: the process would hang at its exit. So what nobody needs is collected first.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


@contextmanager
def joined(compute: ComputeSettings, prepare: Callable[[], object] = lambda: None) -> Iterator[World]:
    """Be one of the ranks while the block runs.

    An error is written to $TORCHELASTIC_ERROR_FILE, where torchrun and `dseq-jepa launch` look for it, before the group
    is left: the other ranks fail because of this one, later, and the first error is the one that a person must see.
    """
    try:
        yield start(compute, prepare)
    except Exception as error:
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
            os.utime(path, ns=(time.time_ns(),) * 2)  # the text has whole seconds and a file system some milliseconds
        traceback.clear_frames(error.__traceback__)  # they hold the run, see `stop`
        raise
    finally:
        stop()


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient; the tensor itself on one rank."""
    if not dist.is_initialized():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(tensor: Tensor) -> Tensor:
    """Largest of all ranks, element by element; the tensor itself on one rank."""
    if not dist.is_initialized():
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def gather_rows(rows_ND: Tensor) -> Tensor:
    """Concatenate equally many rows of every rank in rank order, with gradient to each rank's own rows."""
    if not dist.is_initialized():
        return rows_ND
    return torch.cat(list(with_gradient.all_gather(rows_ND)))  # type: ignore[no-untyped-call]  # torch ships it untyped


def from_main(value: Entry) -> Entry:
    """The first rank's value, on all ranks."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Entry) -> list[Entry]:
    """Every rank's value, on all ranks, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Entry] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()
