"""Run by test_fit_tf.py in Keras' backend of the environment: `fit` of an ALIGN folder on a batch; prints what came of it."""

import json
import sys

import keras
import numpy as np

from kakao_models import TFAlignModel

folder, batch = sys.argv[1], dict(np.load(sys.argv[2]))
model = TFAlignModel.from_pretrained(folder)
before = {name: keras.ops.convert_to_numpy(variable) for name, variable in model._variables().items()}
model.compile(optimizer=keras.optimizers.SGD(1e-2))
loss = model.fit(batch, batch_size=16, shuffle=False, verbose=0).history["loss"]
after = {name: keras.ops.convert_to_numpy(variable) for name, variable in model._variables().items()}
embeds = model.predict(batch, batch_size=8, verbose=0)
model.save_pretrained(sys.argv[3])
print(
    json.dumps(
        {
            "backend": keras.backend.backend(),
            "loss": loss,
            "still": sorted(name for name in before if np.array_equal(before[name], after[name])),
            "predicted": {name: list(value.shape) for name, value in embeds.items()},
        }
    )
)
