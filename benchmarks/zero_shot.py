"""Zero-shot classification with many labels: this package's pipeline against transformers', on the same weights.

    python benchmarks/zero_shot.py --labels 1000 --images 10

transformers encodes every label again for every image, so the ratio grows with the number of images.
"""

import numpy as np
import transformers
from common import arguments, checkpoint, difference, interleaved, sentences, show, theirs
from PIL import Image

from kakao_models import Embedder, pipeline

TASK = "zero-shot-image-classification"


def main() -> None:
    options = arguments(__doc__, labels=1000, images=10, repeats=1)
    folder = checkpoint(options.size)
    labels = sentences(options.labels, 1, 3)
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8)) for _ in range(options.images)]
    embedder = Embedder(folder)
    model, image_processor, tokenizer = theirs(folder)
    their_pipeline = transformers.pipeline(TASK, model=model, image_processor=image_processor, tokenizer=tokenizer)
    results, warm = {}, pipeline(TASK, embedder)
    warm(images[0], labels)

    def run(name: str, call) -> None:
        results[name] = call()

    candidates = {
        "transformers": lambda: run("transformers", lambda: their_pipeline(images, candidate_labels=labels)),
        "kakao_models": lambda: run("kakao_models", lambda: pipeline(TASK, embedder)(images, labels)),
        "kakao_models, labels seen before": lambda: run("warm", lambda: warm(images, labels)),
    }
    seconds = interleaved(candidates, options.repeats)
    scores = [
        [[entry["score"] for entry in sorted(result, key=lambda entry: entry["label"])] for result in results[name]]
        for name in ("transformers", "kakao_models")
    ]
    rows = [[name, value, options.images / value, seconds["transformers"] / value] for name, value in seconds.items()]
    scores = np.array(scores) * options.labels
    title = (
        f"{options.labels} labels, {options.images} images, {options.size}; scores, with their mean as 1, differ by "
        f"{difference(*scores)}"
    )
    show(title, ["", "seconds", "images/s", "times as fast"], rows)


if __name__ == "__main__":
    main()
