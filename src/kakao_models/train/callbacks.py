"""What is seen of a run: a progress bar, a line of JSON for each log, a picture of the curves."""

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

    A run that goes on from a checkpoint takes back the lines after it.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.path, self.start, self.before = Path(args.output_dir, LOG_FILE), time.time(), 0.0
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_logs(self.path) if state.global_step else []
        kept = [line for line in lines if line["step"] <= state.global_step]
        self.before = kept[-1]["hours"] if kept else 0.0
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        if state.is_world_process_zero and logs and hasattr(self, "path"):
            hours = self.before + (time.time() - self.start) / 3600
            line = {"step": state.global_step, **logs, "hours": round(hours, 6)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_logs(path: Path) -> list[dict]:
    """The lines of a `training.jsonl`; one that a killed process left unfinished is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class ProgressBar(TrainerCallback):
    """A bar on a terminal, and where there is none a line for each log: loss, temperature, lr, samples/s, memory."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.bar = None
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, said="")
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        if not state.is_world_process_zero or not logs or not hasattr(self, "bar"):
            return
        said = describe(logs)
        if self.bar and "loss" in logs:
            self.bar.update(self.task, said=said)
        elif self.bar:
            self.bar.console.print(f"step {state.global_step}: {said}", highlight=False)
        else:
            print(f"step {state.global_step}/{state.max_steps}: {said}", file=sys.stderr, flush=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.bar:
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
            draw_curves(read_logs(Path(args.output_dir, LOG_FILE)), Path(args.output_dir, "training.png"))


def draw_curves(logs: list[dict], path: Path) -> None:
    """Loss, learning rate, temperature, speed and each evaluation over steps, as a PNG.

    Curves of the same evaluation share a panel. Nothing is drawn of a run that has logged nothing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False)
    for axis, (title, names) in zip(axes.flat, panels.items()):
        for name in names:
            points = [(line["step"], line[name]) for line in logs if name in line]
            label = name.removeprefix(f"eval_{title}/").replace("_", " ")
            axis.plot(*zip(*points), label=label, linewidth=1.2, marker="." if len(points) < 30 else None)
        axis.set_title(title.replace("_", " "))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    figure.tight_layout()
    save_picture(figure, path)
    pyplot.close(figure)
