"""Resumable state on disk: whole or not there, checked when read, the last two kept.

    store = StateStore(out / "state" / job.digest)
    store.save(step, state)
    step_and_state = store.newest()

A state is `state-<step>.pt` and a manifest with its size and SHA-256 that is written after it: a kill between the two
leaves a file that no manifest names, and it is ignored. Reading is `torch.load(weights_only=True)`: nothing unpickles.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from dseq_jepa.errors import UserError
from dseq_jepa.files import atomically, file_sha256, write_atomically

KEPT_STATES = 2
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

State = dict[str, Any]


class StateStore:
    """The states of one run in one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` optimisation steps, then forget all but the last two.

        Raises:
            UserError: when the disk is full; the states before stay intact.

        """
        path = self.directory / f"state-{step:08d}.pt"
        with atomically(path) as temporary, temporary.open("wb") as file:
            _write(state, file, path)
        manifest = {"step": step, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        write_atomically(path.with_suffix(".json"), json.dumps(manifest))
        for old in self._manifests()[KEPT_STATES:]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest undamaged state, or None where none was ever saved, and a warning for every damaged one.

        Raises:
            UserError: when there are states and all are damaged; starting over in silence would hide the loss.

        """
        warnings: list[str] = []
        for manifest_path in self._manifests():
            path = manifest_path.with_suffix(".pt")
            damage = _damage(path, json.loads(manifest_path.read_text()))
            if damage is None:
                return torch.load(path, map_location="cpu", weights_only=True), warnings
            warnings.append(f"{path}: {damage}; using the state before it")
        if warnings:
            raise UserError(
                f"{self.directory}: every saved state is damaged ({'; '.join(warnings)}). Restore one of them, or "
                "delete this folder to start over."
            )
        return None, warnings

    def _manifests(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("state-*.json"), reverse=True)


def _write(state: State, file: Any, path: Path) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # torch's writer hides the cause of a failed write; asking the file again brings it back.
        file.flush()
        raise UserError(
            f"{path}: cannot be written ({error}); is the disk full? The last good state is intact."
        ) from error


def _damage(path: Path, manifest: dict[str, Any]) -> str | None:
    if not path.exists():
        return "the state that its manifest names is missing"
    size = path.stat().st_size
    if size != manifest["bytes"]:
        return f"truncated, {size:,} of {manifest['bytes']:,} bytes"
    if file_sha256(path) != manifest["sha256"]:
        return "its checksum differs from the manifest's"
    return None


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Weights, optimizer and this process's random generators; whole tensors on the CPU, sharded or not."""
    weights, optimizer_state = get_state_dict(model, optimizer, options=WHOLE)
    return {"model": weights, "optimizer": optimizer_state, "random": _random_state()}


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights as whole contiguous tensors on the CPU; collective when sharded."""
    weights = get_model_state_dict(model, options=WHOLE)
    return {name: value.contiguous() for name, value in weights.items() if isinstance(value, Tensor)}


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Undo `training_state`."""
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=WHOLE
    )
    _restore_random(state["random"])


def _random_state() -> State:
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
