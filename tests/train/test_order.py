"""The order of samples of a mixture, and mixtures as data of a run."""

from collections import Counter

import pytest
import tiny
import training

from kakao_models.samples.sources import open_source
from kakao_models.train import order as order_module
from kakao_models.train.augment import RandomCrop, Resolutions
from kakao_models.train.order import MixedOrder, Mixture, open_data

pytestmark = pytest.mark.usefixtures("one_thread")


class Counts:
    """A source of which nothing is read."""

    def __init__(self, *counts: int):
        self.counts = counts

    def read(self, shard: int, row: int) -> dict:
        raise AssertionError


def mixture(weights=(3, 1), small=10, large=30) -> Mixture:
    return open_data(
        [{"path": Counts(small), "weight": weights[0]}, {"path": Counts(large - 7, 7), "weight": weights[1]}]
    )


@pytest.mark.parametrize("block", [8, 1 << 16])
def test_each_source_has_its_share_of_every_epoch_and_no_sample_is_left_behind(block, monkeypatch):
    monkeypatch.setattr(order_module, "_BLOCK", block)
    order = MixedOrder(mixture(), seed=3)
    epochs = [[order.locate(epoch, position) for position in range(40)] for epoch in range(3)]
    for places in epochs:
        assert Counter(shard > 0 for shard, _ in places) == {False: 30, True: 10}  # three quarters of the small one
    seen = Counter(place for places in epochs for place in places)
    assert {seen[0, row] for row in range(10)} == {9}  # 90 of 10 samples
    assert {seen[shard, row] for shard, count in ((1, 23), (2, 7)) for row in range(count)} == {1}  # 30 of 30
    first = [shard > 0 for shard, _ in epochs[0]]
    assert first != sorted(first) and first != [shard > 0 for shard, _ in epochs[1]]
    if block == 8:  # the shares are even within the epoch
        assert all(2 <= sum(first[start : start + 8]) <= 2 for start in range(0, 40, 8))
    # any place is found without those before it
    assert [MixedOrder(mixture(), seed=3).locate(2, position) for position in (39, 0, 17)] == [
        epochs[2][p] for p in (39, 0, 17)
    ]
    assert [MixedOrder(mixture(), seed=4).locate(0, position) for position in range(40)] != epochs[0]


def test_shares_are_whole_numbers_that_add_up():
    order = MixedOrder(open_data([{"path": Counts(11), "weight": weight} for weight in (0.1, 0.2, 0.7)]))
    assert order.shares.tolist() == [3, 7, 23] and len(order) == 33
    assert Counter(order.locate(0, position)[0] for position in range(33)) == {0: 3, 1: 7, 2: 23}


@pytest.mark.parametrize(
    "data, message",
    [
        ([{"path": "a.tar", "wieght": 2}], "entry 0 of the mixture has no key 'wieght'; did you mean 'weight'"),
        ([{"path": "a.tar", "weight": 1}, {"path": "b.tar"}], "entry 1 of the mixture, b.tar: .* above 0, got None"),
        ([{"path": "a.tar", "weight": 0}], "entry 0 of the mixture, a.tar: expected a weight above 0, got 0"),
        ([{"path": "a.tar", "weight": "much"}], "expected a weight above 0, got 'much'"),
        ([{"path": "nowhere.tar", "weight": 1}], "nowhere.tar"),
    ],
)
def test_what_is_no_mixture_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        open_data(data)


def test_rows_of_a_table_with_a_weight_are_no_mixture():
    rows = [{"path": f"{number}.png", "caption": "a cat", "weight": number} for number in range(3)]
    assert open_data(rows).counts == [3]
    assert open_data([{"path": "a.png", "alt": "a cat", "weight": 1}], order_module.Columns(caption="alt")).counts == [
        1
    ]


def test_a_source_without_a_sample_in_an_epoch_is_named():
    with pytest.raises(
        ValueError, match="source 1, Counts, has weight 0.001, which is less than one of the 40 samples"
    ):
        MixedOrder(mixture((1, 0.001)))


def test_a_run_of_a_mixture_at_several_resolutions_goes_on_to_the_bit(tmp_path):
    records, options = training.records(24), {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    options["per_device_train_batch_size"] = 8

    def trainer():
        data = Mixture([open_source(records[:6]), open_source(records[6:])], [1, 1])
        made = training.align_trainer(tmp_path, data=data, dropout=0.1, **options)
        made.train_dataset.prepare.augment = Resolutions([RandomCrop(27, 24), RandomCrop(36, 32)], by="step")
        return made

    again = training.check_resume(trainer, tmp_path / "checkpoint-4")
    assert again.state.global_step == 4 and again.state.epoch == pytest.approx(4 / 3)


def test_the_trainers_take_a_mixture_too(tmp_path):
    made, rows = training.align_trainer(tmp_path), training.records(8)
    data = [{"path": rows[:2], "weight": 1}, {"path": rows[2:], "weight": 1}]
    trainer = type(made)(
        made.model, training.arguments(tmp_path, per_device_train_batch_size=8), train_dataset=data,
        processing_class=made.processing_class,
    )  # fmt: skip
    (batch,) = list(trainer.get_train_dataloader())
    assert Counter(number for number, _ in batch["ids"]) == {0: 4, 1: 4}
    assert tiny.IMAGE_SIZE == batch["pixel_values"].shape[-1]
