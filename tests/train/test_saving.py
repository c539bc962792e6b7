"""Checkpoints of a run: complete or not there, and a run that goes on from one is the run."""

import shutil

import pytest
import ranks
import torch
import training
from training import weights

from kakao_models.warn import KakaoWarning

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "stop, options",
    [(3, {}), (2, {"chunk_size": 8, "dataloader_num_workers": 1})],  # within an epoch of two batches, and at its end
)
def test_a_run_killed_with_signal_9_goes_on_and_ends_bit_identical(stop, options, tmp_path):
    options |= {"dropout": 0.2, "optimizer": "lamb", "warmup_steps": 2, "max_steps": 5, "ema_decay": 0.9}
    options |= {"save_strategy": "steps", "save_steps": stop}
    straight = training.align_trainer(tmp_path / "straight", **options)
    straight.train()
    ranks.kill_run(tmp_path / "killed", options, after=stop + 1)
    again = training.align_trainer(tmp_path / "killed", **options)
    torch.manual_seed(99)  # whatever the new process begins with
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    for one, other in ((weights(straight), weights(again)), (straight.ema.values, again.ema.values)):
        assert all(torch.equal(x, other[name]) for name, x in one.items())
    states = [t.optimizer.state_dict()["state"] for t in (straight, again)]
    for number, state in states[0].items():
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(states[1][number][k])) for k, x in state.items())


@pytest.mark.parametrize("damaged", ["model.safetensors", "ema.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_damaged_from_outside_is_named(damaged, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "ema_decay": 0.9}
    training.align_trainer(tmp_path, **options).train()
    file = tmp_path / "checkpoint-1" / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded .*Delete this folder"):
        training.align_trainer(tmp_path, **options | {"max_steps": 2}).train(resume_from_checkpoint=True)


def test_a_run_resumed_with_other_settings_has_these_and_says_so(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "schedule": "constant"}
    training.align_trainer(tmp_path, **options).train()
    again = training.align_trainer(tmp_path, **options | {"max_steps": 2, "learning_rate": 0.01, "weight_decay": 0.5})
    with pytest.warns(
        KakaoWarning, match=r"continues with lr 0.01 \(before: 0.05\), weight_decay 0.5 \(before: 0.0001\)"
    ):
        again.train(resume_from_checkpoint=True)
    assert [group["lr"] for group in again.optimizer.param_groups] == [0.01, 0.01]
    assert [log["learning_rate"] for log in again.state.log_history if "loss" in log] == [0.05, 0.01]
    averaged = training.align_trainer(tmp_path, **options | {"max_steps": 3, "ema_decay": 0.9})
    with pytest.raises(
        ValueError, match="checkpoint-2 has no ema.safetensors: it is of a run without a moving average"
    ):
        averaged.train(resume_from_checkpoint=True)


def test_a_finished_run_gone_on_with_makes_no_further_step(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "schedule": "constant", "ema_decay": 0.9}
    straight = training.align_trainer(tmp_path, **options)  # three steps, in epochs of two
    straight.train()
    again = training.align_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for one, other in ((weights(straight), weights(again)), (straight.ema.values, again.ema.values)):
        assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_torn_checkpoint_is_never_loaded(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "save_total_limit": 1}
    trainer = training.align_trainer(tmp_path, **options)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # older ones are gone
    # what a process leaves that is killed while it writes the next
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "_unfinished" / "checkpoint-3")
    (tmp_path / "_unfinished" / "checkpoint-3" / "model.safetensors").write_bytes(b"torn")
    again = training.align_trainer(tmp_path, **(options | {"max_steps": 3}))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3 and not (tmp_path / "_unfinished").exists()
