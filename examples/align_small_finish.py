# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[train]"]
# [tool.uv.sources]
# kakao-models = { path = "..", editable = true }
# ///

"""Finishes align-small after its training: averages weights, reads larger photographs, and trains the ends of both towers.

    python examples/align_small_finish.py --data align-small-data --start align-small-start --run align-small-run \
        --classes imagenet.txt --output align-small

The weights are an average of those before and after the training: better than either on images unlike the training's (Wortsman et al.
2022). The image tower then reads 224 pixels, as it learned from crops of 160 (Touvron et al. 2019). Last, the two matrices into the
common space are trained on features that are computed once, with large batches: on captions, on the teachers' classes of ImageNet, and
on the labels of Caltech-101 and CIFAR-10. The output is in half its size: matrices are stored in float16.
"""

import argparse
import copy
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from align_small_data import NAMES, bytes_of, fill, pass_features
from align_small_start import Descent, as_rows, embed_texts, set_matrix
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from kakao_models import AlignModel, AlignProcessor, Embedder
from kakao_models.pixels.images import load_image
from kakao_models.train.augment import InceptionCrop
from kakao_models.train.targets import class_loss, pair_loss

SIZE, TEMPERATURE = 224, 0.05
CALIBRATED = 0.04  # of 0.035 to 0.05, the temperature whose ECE is low on the held-out part of Caltech-101 and on two other data sets
SOURCES = {"captioned": 6, "caltech": 2, "cifar": 1}  # and how often each photograph is seen in an epoch
LABELS = ("{}", "{a}", "a photo of {a}", "a photo of {a}.", "{s}", "a photo of the {}.", "this is {a}.")
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def averaged(start: Path, run: Path, share: float) -> dict[str, torch.Tensor]:
    """Interpolated weights of two folders; `share` is the weight of `run`."""
    first, last = load_file(start / "model.safetensors"), load_file(run / "model.safetensors")
    return {key: first[key].lerp(value, share) if value.is_floating_point() else value for key, value in last.items()}


def last_matrix(model: AlignModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The image tower's last matrix (D, 1280), its batch norm included, and the constant (D,) that it adds."""
    last = model.vision_model.encoder.blocks[-1].projection
    norm = last.project_bn
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    matrix = last.project_conv.weight[:, :, 0, 0] * scale[:, None]
    return matrix.detach().clone(), (norm.bias - norm.running_mean * scale).detach().clone()


def feature_embedder(model: AlignModel, processor: AlignProcessor, engine: str | None) -> Embedder:
    """Returns the inputs of the last matrix, (N, 1280), as image embeddings."""
    config = copy.deepcopy(model.config)
    width = last_matrix(model)[0].shape[1]
    config.projection_dim = config.vision_config.hidden_dim = config.vision_config.out_channels[-1] = width
    wide = AlignModel(config).eval()
    ends = f"encoder.blocks.{len(model.vision_model.encoder.blocks) - 1}.projection."
    wide.vision_model.load_state_dict(
        {key: value for key, value in model.vision_model.state_dict().items() if not key.startswith(ends)}, strict=False
    )
    pass_features(wide)
    return Embedder(wide, processor=processor, engine=engine)


def views(files: list[bytes], copies: int) -> list:
    """Each file, and parts of its photograph: (copies * N), the files first."""
    crop = InceptionCrop(SIZE, (0.6, 1.0), (0.8, 1.25), antialias=True)
    parts = [
        np.clip(crop(load_image(file), np.random.default_rng((copy, place))), 0, 255).astype(np.uint8)
        for copy in range(1, copies)
        for place, file in enumerate(files)
    ]
    return [*files, *parts]


def train(
    data: list[dict], names: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor, steps: int, batch: int = 512
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The image tower's matrix (D, 1280) and constant (D,), and what text embeddings are multiplied by (D, D).

    Args:
        data: of each source `features` (copies, N, 1280); `captions`, N lists of embeddings (D,); `sentences` (N, K); `classes`
            (N, C) or None; `labels`, N numbers of `label_names` (templates, L, D), or None; and `weight`.
        names: (templates, C, D).
        matrix, bias: where to start.
    """
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    turn = torch.eye(len(matrix))
    trained = [matrix.requires_grad_(), bias.requires_grad_(), turn.requires_grad_()]
    rate = 3e-4 * max(1.0, matrix.detach().std().item() / 0.02)
    groups = [{"params": [one], "lr": lr, "weight_decay": decay}
              for one, lr, decay in zip(trained, (rate, rate, 0.3 * rate), (0.05, 0, 0))]  # fmt: skip
    descent = Descent("ends", groups, steps, betas=(0.9, 0.98))
    counts = [len(source["captions"]) * source["weight"] for source in data]
    shares = np.array(counts) / sum(counts)

    def texts(rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows @ turn.t(), dim=-1)

    for _ in range(steps):
        images, captions, sentences, loss, classified, probabilities = [], [], [], 0.0, [], []
        for source, count in zip(data, random.multinomial(batch, shares)):
            rows = random.integers(0, len(source["captions"]), count)
            features = source["features"][random.integers(0, len(source["features"]), count), rows]
            kept = torch.empty_like(features).bernoulli_(0.9, generator=generator) / 0.9
            embeds = F.normalize(F.linear(features * kept, matrix, bias), dim=-1)
            images.append(embeds)
            captions += [source["captions"][row][int(random.integers(len(source["captions"][row])))] for row in rows]
            sentences.append(source["sentences"][rows])
            if source["classes"] is not None:
                classified.append(embeds)
                probabilities.append(source["classes"][rows])
            if source["labels"] is not None:
                template = texts(source["label_names"][int(random.integers(len(LABELS)))])
                logits = embeds @ template.t() / TEMPERATURE
                loss = loss + 0.5 * F.cross_entropy(logits, source["labels"][rows], label_smoothing=0.05)
        loss = loss + pair_loss(
            torch.cat(images), texts(torch.stack(captions)), torch.cat(sentences), TEMPERATURE, TEMPERATURE
        )
        name = texts(names[int(random.integers(len(names)))])
        descent.step(loss + class_loss(torch.cat(classified), name, torch.cat(probabilities), 1.0, TEMPERATURE))
    return tuple(one.detach() for one in trained)


def write(model: AlignModel, processor: AlignProcessor, output: Path) -> None:
    """Matrices in float16, which are float32 again when loaded. Vectors, such as the variances of batch norms, stay."""
    model.save_pretrained(output)
    processor.save_pretrained(output)
    stored = load_file(output / "model.safetensors")
    tensors = {key: value.half() if value.ndim > 1 else value for key, value in stored.items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)  # safetensors makes it 0600
    for file in set(output.iterdir()) - {
        output / name for name in (*FILES, "model.safetensors", "README.md", "LICENSE")
    }:
        file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that align_small_data.py wrote")
    parser.add_argument("--start", type=Path, required=True, help="folder that align_small_start.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="output of the training")
    parser.add_argument("--share", type=float, default=0.7, help="weight of the trained model in the average")
    parser.add_argument("--classes", required=True, help="file with the 1,000 ImageNet class names, one per line")
    parser.add_argument("--engine", help="engine of `Embedder` for the features, such as openvino")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()

    shutil.copytree(args.run, args.output, dirs_exist_ok=True, ignore=lambda _, names: {*names} - {*FILES})
    save_file(averaged(args.start, args.run, args.share), args.output / "model.safetensors", metadata={"format": "pt"})
    model = AlignModel.from_pretrained(args.output).eval()
    model.config.vision_config.image_size = SIZE
    processor = AlignProcessor.from_pretrained(args.output)
    processor.image_processor.size = {"height": SIZE, "width": SIZE}
    embedder = feature_embedder(model, processor, args.engine)

    def embeds(texts: list[str]) -> torch.Tensor:
        return embed_texts(model, processor.tokenizer, texts)

    texts = (args.data / "texts.txt").read_text(encoding="utf-8").splitlines()
    known = dict(zip(texts, embeds(texts)))
    data = []
    for name, weight in SOURCES.items():
        table = pq.read_table(args.data / f"{name}.parquet")
        copies = 2 if name == "captioned" else 1
        pictures = views(list(map(bytes_of, table["image"].to_pylist())), copies)
        features = torch.from_numpy(embedder.images(pictures, normalize=False)).unflatten(0, (copies, len(table)))
        teacher, labels, label_names = args.data / "teacher" / f"classes-{name}.parquet", None, None
        if "label_name" in table.column_names:
            nouns = sorted(set(table["label_name"].to_pylist()))
            labels = torch.tensor([nouns.index(noun) for noun in table["label_name"].to_pylist()])
            label_names = torch.stack([embeds([fill(template, noun) for noun in nouns]) for template in LABELS])
        data.append({
            "features": features,
            "captions": [[known[text] for text in row] for row in table["captions"].to_pylist()],
            "sentences": as_rows(args.data / "teacher" / f"sentences-{name}.parquet"),
            "classes": as_rows(teacher) if teacher.exists() else None,
            "labels": labels, "label_names": label_names, "weight": weight,
        })  # fmt: skip
        print(f"{name}: features of {len(pictures)} images", flush=True)
    classes = Path(args.classes).read_text(encoding="utf-8").splitlines()
    names = torch.stack([torch.stack([known[fill(template, noun)] for noun in classes]) for template in NAMES])
    matrix, bias, turn = train(data, names, *last_matrix(model), args.steps)

    table = pq.read_table(args.data / "captioned.parquet").slice(0, 256)
    pixels = processor.image_processor(images=list(map(bytes_of, table["image"].to_pylist())), return_tensors="pt")
    set_matrix(model, matrix, pixels["pixel_values"])
    with torch.no_grad():
        model.vision_model.encoder.blocks[-1].projection.project_bn.bias += bias
        model.text_projection.weight.copy_(turn @ model.text_projection.weight)
        model.text_projection.bias.copy_(turn @ model.text_projection.bias)
        model.temperature.fill_(CALIBRATED)
    write(model, processor, args.output)


if __name__ == "__main__":
    main()
