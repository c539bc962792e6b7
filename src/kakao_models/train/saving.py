"""Checkpoints that are complete or do not exist."""

import contextlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, rotate_checkpoints

from kakao_models.checkpoint.torch import BijectiveLoading
from kakao_models.files.atomic import flush
from kakao_models.train.arguments import options_of
from kakao_models.train.optim import MovingAverage
from kakao_models.train.sharding import class_of, is_sharded, load_whole, share_out, whole_state, whole_weights
from kakao_models.warn import warn

EMA_FILE = "ema.safetensors"
_STAGING = "_unfinished"  # an upload of the folder leaves out names that begin so


class AtomicCheckpoints(Trainer):
    """transformers' `Trainer` with checkpoints that get their name once they are on the disk, and hold the moving
    average too. What a killed process leaves of one is in `_unfinished`, which is not searched for checkpoints.
    """

    ema: MovingAverage | None = None
    card: str | None = None  # README.md of the model's folder; None for the draft of transformers
    _staging = False

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _STAGING) if self._staging else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Saves as transformers does, into a folder that gets its name once it is complete and on the disk."""
        folder, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        unfinished = folder / _STAGING
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / name).mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        if self.args.should_save and self.ema:
            average = {name: x.detach().contiguous().cpu() for name, x in self.ema.state_dict().items()}
            save_file(average, unfinished / name / EMA_FILE)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{self.state.best_global_step}")
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / name / "trainer_state.json"))
            for path in (unfinished / name).rglob("*"):
                flush(path)
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            os.replace(unfinished / name, folder / name)
            flush(folder)
            shutil.rmtree(unfinished)
        self.accelerator.wait_for_everyone()  # all processes may load it next
        if not self.args.should_save:
            return
        if self.args.push_to_hub:
            self._push(folder / name)
        rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """transformers calls this while a checkpoint is unfinished; `_save_checkpoint` uploads it when it is complete."""

    def _push(self, checkpoint: Path) -> None:
        """Uploads the model, and the checkpoint if `hub_strategy` asks for it, unless the last upload is still running."""
        running = self.is_world_process_zero() and self.push_in_progress and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        average = self.ema and self.args.hub_strategy == HubStrategy.EVERY_SAVE
        with tempfile.TemporaryDirectory() as nothing:
            if average:  # the model, not a copy of the raw weights in the checkpoint
                self.save_model(self.args.output_dir, _internal_call=True)
            super()._push_from_checkpoint(nothing if average else str(checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            Path(self.args.output_dir, "README.md").write_text(self.card, encoding="utf-8")

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        average = Path(resume_from_checkpoint, EMA_FILE)
        if self.ema and os.path.isdir(resume_from_checkpoint) and not average.is_file():
            raise ValueError(
                f"{resume_from_checkpoint} has no {EMA_FILE}: it is of a run without a moving average, or the file was lost. Resume without one "
                "(ema: null in a recipe, ema_decay=None of TrainArguments), or start a new run in another output folder"
            )
        with _readable(resume_from_checkpoint):
            if (
                self.is_fsdp_enabled
                or not isinstance(self.model, BijectiveLoading)
                or not os.path.isdir(resume_from_checkpoint)
            ):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:  # transformers skips keys that are other names in memory, which are most of ViT's
                saved = class_of(self.model).from_pretrained(resume_from_checkpoint, config=self.model.config)
                if is_sharded(self.model):
                    load_whole(self.model, saved.state_dict())
                else:
                    self.model.load_state_dict(saved.state_dict())
            if self.ema:
                self.ema.load_state_dict(load_file(average))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        settings = [dict(group) for group in self.optimizer.param_groups]
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        own = options_of(self.args).optimizer is not None and isinstance(self.lr_scheduler, LambdaLR)
        changes = _keep_settings(self.optimizer, self.lr_scheduler, settings) if checkpoint is not None and own else ""
        if changes and self.is_world_process_zero():
            warn(f"{checkpoint} was saved with other settings of the optimizer; the run continues with {changes}")
        if is_sharded(self.model):
            share_out(self.optimizer)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer = self.optimizer
        if is_sharded(self.model):  # checkpoints hold whole tensors, regardless of the number of processes
            whole = whole_state(optimizer.state_dict())
            self.optimizer = SimpleNamespace(state_dict=lambda: whole)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            self.optimizer = optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is None and is_sharded(self.model):
            state_dict = whole_weights(self.model)
        super()._save(output_dir, state_dict)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model as it was evaluated: its moving average, where there is one. Checkpoints hold both."""
        average = self.ema and not self._staging
        with self.ema.applied() if average else contextlib.nullcontext():
            super().save_model(output_dir, _internal_call)

    def save_final(self, folder: str | os.PathLike) -> None:
        """`save_model` without an upload."""
        self.save_model(str(folder), _internal_call=True)


def _keep_settings(optimizer: Any, scheduler: LambdaLR, settings: list[dict[str, Any]]) -> str:
    """Gives the settings of this run back to an optimizer that has loaded those of a checkpoint, and says which differ. The
    schedule is this run's in any case."""
    changes = {}
    for place, (group, own) in enumerate(zip(optimizer.param_groups, settings)):
        for name in own.keys() - {"params", "lr"}:
            if group.get(name) != own[name]:
                changes["lr" if name == "initial_lr" else name] = f"{own[name]} (before: {group.get(name)})"
                group[name] = own[name]
        scheduler.base_lrs[place] = group["initial_lr"]
        group["lr"] = scheduler.base_lrs[place] * scheduler.lr_lambdas[place](scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # which logs report
    return ", ".join(f"{name} {change}" for name, change in sorted(changes.items()))


@contextlib.contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """
    Raises:
        ValueError: in place of the errors that readers of files raise for damaged ones.
    """
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        if checkpoint is None:
            raise
        raise ValueError(
            f"{checkpoint} cannot be loaded ({type(error).__name__}: {str(error)[:200]}). Checkpoints get their name once "
            "they are complete, so a file was changed or lost since. Delete this folder and rerun the command: it "
            "resumes from the checkpoint before"
        ) from error
