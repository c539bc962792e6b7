"""Runs functions of this module in several processes that share a torch.distributed group (gloo, on the CPU).

They live here, and not in the tests, because a new process has to import them by name; and the processes are forked from
a server that has imported torch once.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "kakao_models.train.trainer"])


def run(function, world: int, folder: Path, *arguments) -> list:
    """Results of `function(rank, world, *arguments)` in `world` processes; whatever torch.save can write."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        _CONTEXT.Process(target=_rank, args=(function, rank, world, folder, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
    for process in processes:
        process.kill()
    assert not failed, f"processes {failed} of {world} failed; what they said is above"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(function, rank: int, world: int, folder: Path, arguments) -> None:
    torch.set_num_threads(1)
    # what torchrun says, for code that looks for it
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    torch.save(function(rank, world, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def contrastive_loss(rank: int, world: int, images, texts, temperature, smoothing: float, tile: int) -> dict:
    """Loss and gradients of this rank's share of the samples."""
    from kakao_models.train.loss import tiled_contrastive_loss

    own = slice(rank * len(images) // world, (rank + 1) * len(images) // world)
    leaves = [x.clone().requires_grad_() for x in (images[own], texts[own], temperature)]
    loss = tiled_contrastive_loss(*leaves, smoothing, tile_size=tile)
    (3 * loss).backward()
    return {"loss": loss.detach(), "gradients": [leaf.grad for leaf in leaves]}


def sigmoid_loss(rank: int, world: int, images, texts, temperature, bias) -> dict:
    """The same of the sigmoid loss."""
    from kakao_models.train.loss import tiled_sigmoid_loss

    own = slice(rank * len(images) // world, (rank + 1) * len(images) // world)
    leaves = [x.clone().requires_grad_() for x in (images[own], texts[own], temperature, bias)]
    loss = tiled_sigmoid_loss(*leaves, tile_size=3)
    (3 * loss).backward()
    return {"loss": loss.detach(), "gradients": [leaf.grad for leaf in leaves]}


def uneven_contrastive_loss(rank: int, world: int) -> str:
    from kakao_models.train.loss import tiled_contrastive_loss

    x = torch.eye(4)[: 3 + rank]
    try:
        tiled_contrastive_loss(x, x, torch.tensor(1.0))
    except ValueError as error:
        return str(error)
    return ""


def align_run(rank: int, world: int, folder: str, options: dict) -> dict:
    """Weights and mean loss of a short run of the trainer, and the seed its random numbers began with."""
    import training

    trainer = training.align_trainer(Path(folder), **options)
    result = trainer.train()
    return {"weights": trainer.model.state_dict(), "loss": result.training_loss, "seed": torch.initial_seed()}


def plain_align_run(rank: int, world: int, folder: str, batch: int, options: dict) -> dict:
    """Weights after a run with transformers' own arguments, predictions for ten samples, and the best checkpoint."""
    import training
    from transformers import TrainingArguments

    made = training.align_trainer(Path(folder))
    arguments = TrainingArguments(folder, use_cpu=True, per_device_train_batch_size=batch, **options)
    data, rows = training.records(16), training.records(10)
    both = {"train_dataset": data, "eval_dataset": rows, "processing_class": made.processing_class}
    trainer = training.AlignTrainer(made.model, arguments, **both)
    trainer.train()
    weights = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    result = trainer.predict(rows)
    images, best = torch.from_numpy(result.predictions[0]), trainer.state.best_model_checkpoint
    return {"weights": weights, "rows": result.label_ids, "images": images, "best": best}


def sharded_step(rank: int, world: int, folder: str) -> dict:
    """What `align_step` gives, of parameters that FSDP2 has sharded as docs/scaling.md says."""
    import training
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trainer = training.align_trainer(Path(folder), per_device_train_batch_size=16 // world)
    model, mesh, refusal = trainer.model.double(), init_device_mesh("cpu", (world,)), ""
    try:
        fully_shard(training.align_trainer(Path(folder)).model, mesh=mesh)
    except ValueError as error:
        refusal = str(error)
    for part in (*model.vision_model.encoder.blocks, *model.text_model.encoder.layer):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.temperature})
    result = training.align_step(model, next(iter(trainer.get_train_dataloader())), world)
    sharded = {name for name, p in model.named_parameters() if hasattr(p, "full_tensor")}
    whole = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in result["weights"].items()}
    return {"loss": result["loss"], "weights": whole, "sharded": sharded, "refusal": refusal}


def sharded_runs(rank: int, world: int, folder: str, options: dict, resume: bool) -> dict:
    """Whole weights (of process 0) after a run of both trainers with shared out parameters, in folders of their names."""
    import training

    from kakao_models.train.sharding import whole_weights

    made = {"align": training.align_trainer, "vit": training.vit_trainer}
    results = {}
    for kind, settings in options.items():
        trainer = made[kind](Path(folder, kind), shard=True, **settings)
        trainer.evaluations = {"mine": lambda model, processor: {"numbers": sum(p.numel() for p in model.parameters())}}
        trainer.train(resume_from_checkpoint=resume)
        sharded = {name for name, p in trainer.model.named_parameters() if hasattr(p, "full_tensor")}
        metrics = trainer.evaluate()
        trainer.save_final(Path(folder, kind, "final"))
        results[kind] = {"weights": whole_weights(trainer.model), "sharded": sharded, "metrics": metrics}
    return results


def kill_run(folder: Path, options: dict, after: int) -> None:
    """A run of the trainer in a process of its own, which is killed (signal 9) after so many steps."""
    process = _CONTEXT.Process(target=_killed_run, args=(folder, options, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def _killed_run(folder: Path, options: dict, after: int) -> None:
    import training
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == after:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    trainer = training.align_trainer(folder, **options)
    trainer.add_callback(Kill())
    trainer.train()
