"""Checkpoint files: written whole or not at all, and known again in a run folder that was moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from twotower.training.read_checkpoint import read_checkpoint


class WholeFiles(TorchCheckpointIO):
    """Writes beside the file and renames.

    Lightning's own writer stages the file in the folder for temporary files. Where that is another
    file system the last step is a copy, and a process that is killed in it leaves half a checkpoint
    in the place of the one it would be resumed from.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint; `storage_options` are Lightning's and not looked at."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}")  # what a killed process left is written over
        try:
            torch.save(checkpoint, staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU; see `read_checkpoint`."""
        return read_checkpoint(Path(path))


class BestWeights(ModelCheckpoint):
    """Keeps the weights of the best epoch, or of the last one.

    Args:
        path: The file.
        monitor: Full name of the metric that decides; None keeps the last epoch's weights.
        mode: Whether the metric shall fall (``min``) or rise (``max``).
    """

    def __init__(self, *, path: Path, monitor: str | None, mode: Literal["min", "max"]) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.path = path

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was best; a run folder may lie elsewhere than when the state was saved."""
        path = str(self.path)
        moved: dict[str, Any] = {"dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path"):
            moved[name] = path if state_dict[name] else ""
        scores = [*state_dict["best_k_models"].values()]
        moved["best_k_models"] = dict(zip([path], scores, strict=False))
        super().load_state_dict(state_dict | moved)
