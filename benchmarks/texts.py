"""Embedding short texts: `Embedder.texts` against transformers' AlignProcessor and AlignModel, on the same weights.

    python benchmarks/texts.py --texts 512

transformers' processor pads every text to 64 tokens. The third row pads to the longest of each batch, which a user
has to ask for.
"""

import torch
from common import arguments, checkpoint, difference, interleaved, sentences, show, theirs
from transformers.models.align.processing_align import AlignProcessor as TheirProcessor

from kakao_models import Embedder


def main() -> None:
    options = arguments(__doc__, texts=512, shortest=4, longest=16, batch_size=32, repeats=3)
    folder = checkpoint(options.size)
    texts = sentences(options.texts, options.shortest, options.longest)
    embedder = Embedder(folder, batch_size=options.batch_size)
    model, image_processor, tokenizer = theirs(folder)
    processor = TheirProcessor(image_processor, tokenizer)
    results = {}

    def ours() -> None:
        results["ours"] = embedder.texts(texts)

    def with_transformers(name: str, **padding) -> None:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), options.batch_size):
                batch = processor(text=texts[start : start + options.batch_size], return_tensors="pt", **padding)
                rows.append(model.get_text_features(**batch).pooler_output)
        results[name] = torch.cat(rows).numpy()

    candidates = {
        "transformers": lambda: with_transformers("theirs"),
        "transformers, padding=True": lambda: with_transformers("theirs, padded", padding=True),
        "kakao_models": ours,
    }
    seconds = interleaved(candidates, options.repeats)
    rows = [[name, value, options.texts / value, seconds["transformers"] / value] for name, value in seconds.items()]
    lengths = f"{options.shortest} to {options.longest} words"
    title = f"{options.texts} texts of {lengths}, {options.size}; differ by {difference(results['ours'], results['theirs'])}"
    show(title, ["", "seconds", "texts/s", "times as fast"], rows)


if __name__ == "__main__":
    main()
