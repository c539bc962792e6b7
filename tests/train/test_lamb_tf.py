"""LAMB for Keras through a saved model."""

import keras
import numpy as np
import pytest
import tiny

from kakao_models import TFAlignModel, TFViTModel
from kakao_models.align.modeling_tf import TFAlignBatchNorm
from kakao_models.train.lamb_tf import Lamb


@pytest.mark.parametrize("built", [False, True])
def test_a_saved_model_still_spares_its_batch_norms(built, tmp_path):
    tiny.save_model("AlignModel", tiny.align_config(), tmp_path)
    model = TFAlignModel.from_pretrained(tmp_path)
    model.compile(optimizer=Lamb(2e-3).spare_batch_norms(model))
    if built:
        model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is TFAlignModel
    before, after = model._variables(), again._variables()
    assert before.keys() == after.keys()
    for name, variable in before.items():
        np.testing.assert_array_equal(after[name].numpy(), variable.numpy(), err_msg=name)
    norms = [layer for layer in again._flatten_layers() if isinstance(layer, TFAlignBatchNorm)]
    wanted = {id(variable) for layer in norms for variable in layer.trainable_variables}
    variables = again.trainable_variables
    assert len(wanted) == 2 * len(norms) > 0
    assert {id(variables[place]) for place in again.optimizer.spared} == wanted
    zeros = [np.zeros(variable.shape, np.float32) for variable in variables]
    again.optimizer.apply(zeros, variables)  # no gradient: decay is all that moves a variable
    for variable, first in zip(variables, model.trainable_variables):
        assert np.array_equal(variable.numpy(), first.numpy()) == (id(variable) in wanted), variable.path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_variables_are_refused(dtype):
    with pytest.raises(ValueError, match=f'is {dtype}, .*set_dtype_policy\\("mixed_bfloat16"\\)'):
        Lamb().build([keras.Variable(np.ones(3), dtype=dtype)])


def test_what_the_constructor_chose_is_saved(tmp_path):
    model = TFViTModel(tiny.vit_config(), add_pooling_layer=True, use_mask_token=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.pooler is not None and again._variables().keys() == model._variables().keys()
    assert {"embeddings.mask_token", "pooler.dense.kernel"} <= again._variables().keys()
