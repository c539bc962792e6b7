"""Optimizers, schedules and moving average beside what the original programs recorded."""

import json

import goldens
import numpy as np
import pytest
import tiny
import torch
from tolerances import TOLERANCE

from kakao_models import AlignConfig, AlignModel, ViTConfig, ViTForImageClassification
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.weightmap import permute
from kakao_models.train.optim import (
    LAMB,
    MovingAverage,
    build_optimizer,
    build_schedule,
    check_schedule,
    parameter_groups,
    schedule_factor,
)
from kakao_models.vit.weights import vit_tpu_slots


def facts(name: str) -> dict:
    return json.loads((goldens.FOLDER / f"golden_{name}.json").read_text())


def named_tensors(model, slots) -> dict[str, torch.nn.Parameter]:
    """Key of the original → (our parameter, slot)."""
    parameters = dict(model.named_parameters())
    by_disk_name = {name: parameters.get(name) for name in parameters}
    return {
        slot.local_key.removesuffix(goldens.weight_formula.SUFFIX): (by_disk_name[slot.key], slot)
        for slot in slots
        if slot.key in by_disk_name
    }


def original_layout(parameter: torch.Tensor, slot) -> np.ndarray:
    return permute(parameter.detach().double().numpy(), slot.axes, slot.local_axes)


def test_two_lamb_steps_are_the_originals(golden_folder):
    recorded, run = goldens.load_arrays("align_a_lamb"), facts("align_a_lamb")
    golden = goldens.load("align_a")
    folder = golden_folder("align_a")
    config = AlignConfig.from_pretrained(folder)
    config.vision_config.drop_connect_rate = 0.0
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = AlignModel.from_pretrained(folder, config=config).train()
    model.gradient_checkpointing_enable()  # less memory by a gigabyte and more, the same numbers
    images = goldens.input_formula.images(1, run["batch"], 289)
    assert goldens.input_formula.digest(images) == run["inputs"]["images_sha256"]
    names = "input_ids", "attention_mask", "token_type_ids"
    inputs = {name: torch.from_numpy(golden.arrays[name]).long() for name in names}
    inputs["pixel_values"] = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    groups = parameter_groups(model, lr=1e-3, weight_decay=1e-5)
    optimizer = build_optimizer("lamb", groups)

    tensors = named_tensors(model, align_tpu_slots(config))
    keys = [str(key) for key in recorded["trainable_keys"]]
    pooler = np.array(["/pooler/" in key for key in keys])  # unused, so without a gradient
    moving = ~recorded["zero_gradient"] & ~pooler
    keys = [key for key, chosen in zip(keys, moving) if chosen]
    for step, limit in ((1, "lamb loss, first"), (2, "lamb loss, later")):
        loss = model(**inputs, return_loss=True).loss
        assert abs(loss.item() - recorded["loss"][step - 1]) <= TOLERANCE[limit]
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            norms = np.array([tensors[key][0].grad.double().norm() for key in keys])
            np.testing.assert_allclose(norms, recorded["grad_norm"][moving], rtol=TOLERANCE["step norms"])
        before = {key: tensors[key][0].detach().clone() for key in keys}
        optimizer.step()
        norms = np.array([(tensors[key][0].detach() - before[key]).double().norm() for key in keys])
        wanted = recorded[f"update{step}_norm"]
        # of a step that is close to a sign function, elements with tiny gradients are noise
        np.testing.assert_allclose(norms, wanted[moving], rtol=TOLERANCE["lamb step norms"])
        for variable in ("temperature", "stem_bn_gamma", "stem_bn_beta"):
            key = str(recorded["keys"][list(recorded["variables"]).index(variable)])
            got = original_layout(*tensors[key]).ravel()
            np.testing.assert_allclose(
                got, recorded[f"{variable}/step{step}"], atol=step * TOLERANCE["lamb steps"], rtol=0
            )
    assert model.text_model.pooler.dense.weight.grad is None


def lamb_by_hand(weights, gradients, lr, decay, adapt):
    """Three lines of the paper, in numpy."""
    m = v = np.zeros_like(weights)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + decay * weights
        lengths = np.linalg.norm(weights), np.linalg.norm(update)
        weights = weights - lr * (lengths[0] / lengths[1] if adapt and all(lengths) else 1.0) * update
    return weights


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_lamb_is_its_formula(adapt, start):
    random = np.random.default_rng(0)
    weights, gradients = start * random.normal(size=(4, 3)), random.normal(size=(5, 4, 3))
    p = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = LAMB([p], lr=0.02, weight_decay=0.3, adapt=adapt)
    for gradient in gradients:
        p.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    expected = lamb_by_hand(weights, gradients, 0.02, 0.3, adapt)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def test_lamb_goes_on_from_its_state():
    def train(steps, restart_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = LAMB(model.parameters(), lr=0.1)
        for step in range(steps):
            if step == restart_at:
                state, optimizer = optimizer.state_dict(), LAMB(model.parameters(), lr=0.1)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            model(torch.ones(2, 4) * step).square().sum().backward()
            optimizer.step()
        return model.weight

    assert torch.equal(train(5), train(5, restart_at=3))


def test_groups_spare_batch_norms_alone_and_scale_towers():
    model = AlignModel(tiny.align_config())
    model.text_model.pooler.requires_grad_(False)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5, lr_scale={"vision_model": 0.1})
    name_of = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in groups:
        for p in group["params"]:
            name = name_of[id(p)]
            assert name not in found
            found[name] = group["lr"], group["weight_decay"], group["adapt"]
    norms = {name for name in found if "batchnorm" in name or "_bn." in name or "depthwise_norm" in name}
    assert norms and found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, settings in found.items():
        lr = 0.1 if name.startswith("vision_model.") else 1.0
        assert settings == ((lr, 0.0, False) if name in norms else (lr, 0.5, True)), name
    assert found["temperature"] == (1.0, 0.5, True)


def test_a_scale_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="'vision'. Names begin with .*vision_model"):
        parameter_groups(AlignModel(tiny.align_config()), 1.0, 0.0, {"vision": 0.1})
    with pytest.raises(ValueError, match="every parameter is frozen"):
        parameter_groups(torch.nn.Linear(2, 2).requires_grad_(False), 1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_are_refused(dtype):
    model = torch.nn.Linear(2, 2, dtype=dtype)
    with pytest.raises(
        ValueError, match=r"weight is b?float16, which rounds .* from_pretrained\(..., dtype=torch.float32\)"
    ):
        parameter_groups(model, 1.0, 0.0)
    model.weight.requires_grad_(False), model.bias.requires_grad_(False)
    assert len(parameter_groups(torch.nn.Sequential(model, torch.nn.Linear(2, 2)), 1.0, 0.0)) == 1  # frozen ones may be


@pytest.mark.parametrize(
    "name, option", [("lamb", {"beta": 0.9}), ("adamw", {"betas": 0.9}), ("sgd", {"momentum": "much"})]
)
def test_an_option_that_an_optimizer_does_not_take_is_named(name, option):
    groups = parameter_groups(torch.nn.Linear(2, 2), 1.0, 0.0)
    with pytest.raises(ValueError, match=f"optimizer_options: {name} does not take {{'{next(iter(option))}'"):
        build_optimizer(name, groups, **option)


@pytest.mark.parametrize("name", ["default", "cc3m", "coyo700m"])
def test_the_schedule_of_align(name):
    run = facts("align_schedule")[name]
    for step, lr in run["values"]:
        got = run["lr"] * schedule_factor("linear", step, run["warmup_steps"], run["train_steps"])
        assert got == pytest.approx(lr, rel=TOLERANCE["schedule, relative"], abs=run["lr"] * 1e-7), step


@pytest.mark.parametrize("name", ["pretrain", "finetune", "short_linear", "short_cosine"])
def test_the_schedules_of_vit(name):
    run = facts("vit_schedule")[name]
    shape = run["schedule"].split("/")[1]
    end = run["end_learning_rate"] / run["base_lr"]
    for step, lr in run["values"]:
        got = run["base_lr"] * schedule_factor(shape, step, run["warmup_steps"], run["decay_steps"], end)
        # float32 rounding of the original's cosine reaches 1e-7 of the base near its end
        assert got == pytest.approx(lr, rel=TOLERANCE["schedule, relative"], abs=run["base_lr"] * 1e-7), step


def test_a_schedule_scales_every_group_and_refuses_what_does_not_fit():
    p, q = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 1.0}, {"params": [q], "lr": 0.1}])
    schedule = build_schedule(optimizer, "linear", 2, 6)
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step(), schedule.step()
    np.testing.assert_allclose([rate[0] for rate in rates], [0, 0.5, 1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose([rate[1] / 0.1 for rate in rates], [rate[0] for rate in rates])
    with pytest.raises(ValueError, match="10 steps of warm-up do not fit into a run of 6"):
        build_schedule(optimizer, "linear", 10, 6)
    with pytest.raises(ValueError, match="got 'step', expected one of linear, cosine"):
        build_schedule(optimizer, "step", 1, 6)


@pytest.fixture(scope="module")
def vit_golden():
    return goldens.load("vit_a")


def vit_model(golden) -> ViTForImageClassification:
    config = goldens.vit_config(golden.config)
    weights = goldens.canonical(vit_tpu_slots(config, "manager"), golden.original)
    return ViTForImageClassification.from_pretrained(
        None, config=config, state_dict={name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    )


@pytest.mark.parametrize("run", ["adamw", "sgd_ema"])
def test_three_vit_steps_are_the_originals(run, vit_golden):
    recorded, setting = goldens.load_arrays("vit_a_steps"), facts("vit_a_steps")["runs"][run]
    assert isinstance(goldens.vit_config(vit_golden.config), ViTConfig)
    model = vit_model(vit_golden).train()
    images = goldens.input_formula.images(1, 8, 64)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    numbers = torch.from_numpy(goldens.input_formula.integers("labels", 1, (8, 3), 0, 10))
    labels = torch.zeros(8, 10).scatter_(1, numbers, 1.0) if run == "adamw" else numbers[:, 0]
    decay = setting["optimizer"].get("weight_decay_rate", 0.0)
    lr = {"adamw": 1e-3, "sgd_ema": 1e-2}[run]
    optimizer = build_optimizer(run.removesuffix("_ema"), parameter_groups(model, lr, decay))
    average = MovingAverage(model, 0.9999)
    for value in average.values.values():
        value.zero_()  # where the original starts
    for step in range(3):
        loss = model(pixels, labels=labels).loss
        if run == "adamw":  # TensorFlow adds eps before the bias correction, which matters in the first steps alone
            optimizer.param_groups[0]["eps"] = 1e-7 / (1 - 0.999 ** (step + 1)) ** 0.5
        assert loss.item() == pytest.approx(recorded[f"{run}/loss"][step], rel=TOLERANCE["vit step loss, relative"])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step == 0:
            assert norm.item() == pytest.approx(setting["global_gradient_norm"], rel=TOLERANCE["step norms"])
        optimizer.step()
        average.update()
    positions, limit = model.vit.embeddings.position_embeddings, TOLERANCE["vit steps"][run]
    got = {"class_emb": model.vit.embeddings.cls_token, "norm_gamma": model.vit.layernorm.weight}
    got |= {"pos_emb": positions[:, :1], "head_bias": model.classifier.bias}
    names = {id(x): name for name, x in model.named_parameters()}
    for name, parameter in got.items():
        wanted = recorded[f"{run}/{name}/step3"]
        values = parameter.detach().double().numpy().ravel()[: len(wanted)]
        np.testing.assert_allclose(values, wanted[: len(values)], rtol=0, atol=limit, err_msg=name)
        if run == "sgd_ema" and id(parameter) in names:
            values = average.values[names[id(parameter)]].double().numpy().ravel()[: len(wanted)]
            np.testing.assert_allclose(values, recorded[f"{run}/{name}/average3"], rtol=0, atol=limit, err_msg=name)


def test_the_average_is_lent_and_given_back():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = MovingAverage(model, decay=0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_var += 3
    average.update()  # d = min(0.5, 2 / 11)
    raw = {name: x.clone() for name, x in model.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(model[0].weight.detach(), start + 9 / 11)
        torch.testing.assert_close(model[1].running_var, torch.full((2,), 1 + 3 * 9 / 11))
    assert all(torch.equal(x, raw[name]) for name, x in model.state_dict().items())
    copy = MovingAverage(model)
    copy.load_state_dict(average.state_dict())
    assert copy.step == 1 and all(torch.equal(copy.values[name], x) for name, x in average.values.items())
    with pytest.raises(ValueError, match="another model"):
        MovingAverage(model[0]).load_state_dict(average.state_dict())


def test_an_average_of_narrow_weights_moves_by_less_than_they_can():
    model = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    average = MovingAverage(model, decay=0.999)
    average.step = 10**6
    with torch.no_grad():
        model.weight += 1
    for _ in range(100):
        average.update()
    torch.testing.assert_close(average.values["weight"], torch.full((2, 2), 2 - 0.999**100), rtol=0, atol=1e-5)
    with average.applied():
        assert model.weight.dtype == torch.bfloat16 and abs(model.weight[0, 0] - 1.0952) < 0.004


def test_points_are_a_curve_of_straight_lines():
    points = {100: 1.0, 0: 0.1, 300: 0.5}
    factors = [schedule_factor(points, step, 7, 50) for step in (0, 50, 100, 200, 300, 1000)]
    assert factors == pytest.approx([0.1, 0.55, 1.0, 0.75, 0.5, 0.5])
    p = torch.nn.Parameter(torch.ones(1))
    schedule = build_schedule(torch.optim.SGD([p], lr=2.0), points, 0, 50)
    assert schedule.get_last_lr() == [pytest.approx(0.2)]
    for wrong in ({}, {"late": 1.0}, {0: -1.0}, "cosin"):
        with pytest.raises(ValueError, match="schedule: "):
            check_schedule(wrong)
