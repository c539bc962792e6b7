"""Progress of a run: a progress bar, a line of JSON for each log, a chart of the curves."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kakao_models.inference.picture import save_picture

LOG_FILE = "training.jsonl"


class JsonLines(TrainerCallback):
    """Appends every log to `training.jsonl` in the output folder, with `step` and `hours` of all sessions of the run.

    A resumed run begins the file with the logs of its checkpoint, and drops those after it.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.path, self.start = Path(args.output_dir, LOG_FILE), time.time()
        self.before = hours_of(state.log_history)
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_history), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ):
        if hasattr(self, "path"):
            line = state.log_history[-1]  # `logs` and their step; checkpoints keep it
            line["hours"] = round(self.before + (time.time() - self.start) / 3600, 6)
            if state.is_world_process_zero:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def hours_of(logs: list[dict]) -> float:
    """Hours of training until the last log, as `JsonLines` counts them."""
    return logs[-1].get("hours", 0.0) if logs else 0.0


class ProgressBar(TrainerCallback):
    """A progress bar on a terminal, otherwise a line for each log: loss, temperature, lr, samples/s, memory."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.bar = None
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ):
        if not state.is_world_process_zero or not logs or not hasattr(self, "bar"):
            return
        if self.bar and "loss" in logs:
            self.bar.update(self.task, description=describe(logs))
        else:  # above the bar, where there is one
            print(f"step {state.global_step}/{state.max_steps}: {describe(logs)}", file=sys.stderr, flush=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.close()

    def close(self) -> None:
        """Ends the bar and shows the terminal's cursor again; also after an error, when `on_train_end` is not called."""
        if getattr(self, "bar", None):
            self.bar.stop()


def describe(logs: dict) -> str:
    """Logs in one line, numbers short."""
    names = {"learning_rate": "lr", "samples_per_second": "samples/s", "memory_gb": "GB", "grad_norm": "gradient"}
    hidden = ("epoch", "total_flos", "train_steps_per_second")
    parts = ((names.get(name, name), value) for name, value in logs.items() if name not in hidden)
    return "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in parts)


class Curves(TrainerCallback):
    """Draws `training.png` when the run ends."""

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.is_world_process_zero:
            draw_curves(state.log_history, Path(args.output_dir, "training.png"))


def draw_curves(logs: list[dict], path: Path) -> None:
    """Loss, learning rate, temperature, speed and each evaluation over steps, as a PNG.

    Curves of the same evaluation share a panel. Nothing is drawn of a run that has logged nothing.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    single = ("loss", "learning_rate", "temperature", "grad_norm", "samples_per_second")
    for name in dict.fromkeys(name for line in logs for name in line):
        if name in single:
            panels[name] = [name]
        elif name.startswith("eval_") and name != "eval_seconds":
            panels.setdefault(name.removeprefix("eval_").split("/")[0], []).append(name)
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="tight")
    for place, (title, names) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(rows, columns, place)
        for name in names:
            points = [(line["step"], line[name]) for line in logs if name in line]
            label = name.removeprefix(f"eval_{title}/").replace("_", " ")
            axis.plot(*zip(*points), label=label, linewidth=1.2, marker="." if len(points) < 30 else None)
        axis.set_title(title.replace("_", " "))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    save_picture(figure, path)
