"""Resumable state on disk: whole or not there, checked when read, the last two kept.

    store = StateStore(out / "state" / job.digest)
    store.save(step, state)                          # whole, by one rank
    state, warnings = store.newest()                 # checked; None where nothing was saved

A state is `state-<step>.pt` and a manifest with the size and SHA-256 of its files that is written after them: a kill
between the two leaves files that no manifest names, and they are ignored. Reading is `torch.load(weights_only=True)`:
nothing unpickles. A sharded run saves its weights and optimizer as `state-<step>.shards/`, each rank its own part, by
torch.distributed.checkpoint; any number of ranks reads that. Under a fence, a state's name ends with the token, so that
a process which was thought dead can never touch the files of the one that follows it.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from dseq_jepa.errors import UserError
from dseq_jepa.fence import Fence
from dseq_jepa.files import atomically, file_sha256, write_atomically

KEPT_STATES = 2
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SHARDED = StateDictOptions(cpu_offload=True)

State = dict[str, Any]


class StateStore:
    """The states of one run in one folder."""

    def __init__(self, directory: Path, fence: Fence = Fence()) -> None:  # noqa: B008 - it has no state
        self.directory, self.fence = directory, fence

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` optimisation steps, then forget all but the last two, and any of a later step:
        it is damaged, or of a process that was superseded and went on for a while before it noticed.

        Raises:
            UserError: when the disk is full or another process took over; the states before stay intact.

        """
        self.fence.check()
        path = self._path(step)
        with atomically(path) as temporary, temporary.open("wb") as file:
            _write(state, file, path)
        manifest: dict[str, Any] = {"step": step, **_described(path)}
        shards = sorted(path.with_suffix(".shards").glob("*"))
        if shards:
            manifest["shards"] = {shard.name: _described(shard) for shard in shards}
        self.fence.check()
        write_atomically(path.with_suffix(".json"), json.dumps(manifest))
        for other in self._manifests():
            if json.loads(other.read_text())["step"] > step:
                other.unlink()
        self._forget(KEPT_STATES)

    def save_shards(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write this rank's part of a sharded state; all ranks, before the first one calls `save` for this step.

        Raises:
            UserError: when any rank's disk is full or another process took over.

        """
        self.fence.check()
        path = self._path(step).with_suffix(".shards")
        path.mkdir(parents=True, exist_ok=True)
        try:
            dcp.state_dict_saver.save(sharded_state(model, optimizer), checkpoint_id=path)
        except CheckpointException as error:
            causes = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
            raise UserError(
                f"{path}: cannot be written ({causes}); is the disk full? The last good state is intact."
            ) from error

    def drop(self) -> None:
        """Delete every state; what else lies in the folder stays.

        Raises:
            UserError: when another process took over.

        """
        self.fence.check()
        self._forget(0)

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest undamaged state, or None where none was ever saved, and a warning for every damaged one.

        Raises:
            UserError: when there are states and all are damaged.

        """
        path, warnings = self.find()
        return self.load(path) if path else None, warnings

    def find(self) -> tuple[Path | None, list[str]]:
        """The file of the newest undamaged state; `load` reads it. For ranks that leave the checking to one.

        Raises:
            UserError: when there are states and all are damaged; starting over in silence would hide the loss.

        """
        warnings: list[str] = []
        for manifest_path in self._manifests():
            path = manifest_path.with_suffix(".pt")
            damage = _damage(path, json.loads(manifest_path.read_text()))
            if damage is None:
                return path, warnings
            warnings.append(f"{path}: {damage}; using the state before it")
        if warnings:
            raise UserError(
                f"{self.directory}: every saved state is damaged ({'; '.join(warnings)}). Restore one of them, or "
                "delete this folder to start over."
            )
        return None, warnings

    def load(self, path: Path) -> State:
        """A state that `find` found; the parts of a sharded one stay on the disk until `restore`."""
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        shards = path.with_suffix(".shards")
        return state | {"shards": shards} if shards.exists() else state

    def _path(self, step: int) -> Path:
        token = f".t{self.fence.token:06d}" if self.fence.folder else ""
        return self.directory / f"state-{step:08d}{token}.pt"

    def _manifests(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("state-*.json"), reverse=True)

    def _forget(self, kept_states: int) -> None:
        """Delete every state but the last ones, and what a kill left unfinished."""
        for old in self._manifests()[kept_states:]:
            old.unlink()
        kept = {path.stem for path in self._manifests()}
        for path in self.directory.glob("state-*"):
            if path.stem not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.directory.glob(".state-*.tmp"):  # named after a step that the next start may not save at
            path.unlink()


def _write(state: State, file: Any, path: Path) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # torch's writer hides the cause of a failed write; asking the file again brings it back.
        file.flush()
        raise UserError(
            f"{path}: cannot be written ({error}); is the disk full? The last good state is intact."
        ) from error


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _damage(path: Path, manifest: dict[str, Any]) -> str | None:
    """What is wrong with a state's files, if anything is."""
    shards = {path.with_suffix(".shards") / name: entry for name, entry in manifest.get("shards", {}).items()}
    for file, expected in ({path: manifest} | shards).items():
        if not file.exists():
            return f"{file.name}, which its manifest names, is missing"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{file.name} is truncated, {size:,} of {expected['bytes']:,} bytes"
        if file_sha256(file) != expected["sha256"]:
            return f"the checksum of {file.name} differs from the manifest's"
    return None


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Weights, optimizer and this process's random generators; whole tensors on the CPU, sharded or not."""
    weights, optimizer_state = get_state_dict(model, optimizer, options=WHOLE)
    return {"model": weights, "optimizer": optimizer_state, "random": random_state()}


def sharded_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """This rank's part of the weights and the optimizer."""
    weights, optimizer_state = get_state_dict(model, optimizer, options=SHARDED)
    return {"model": weights, "optimizer": optimizer_state}


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights as whole contiguous tensors on the CPU; collective when sharded."""
    weights = get_model_state_dict(model, options=WHOLE)
    return {name: value.contiguous() for name, value in weights.items() if isinstance(value, Tensor)}


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Undo `training_state`, or read the parts that `save_shards` wrote, on any number of ranks."""
    _restore_random(state["random"])
    if "shards" in state:
        parts = sharded_state(model, optimizer)
        dcp.state_dict_loader.load(parts, checkpoint_id=state["shards"])
        set_state_dict(
            model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"], options=SHARDED
        )
        return
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=WHOLE
    )


def random_state() -> State:
    """This process's random generators."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random(state: State) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
