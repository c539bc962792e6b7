"""The command `kakao-models export`."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kakao_models.verbs import ModelArgument, RevisionOption, not_standard, prepare, tell


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option(help="Format: onnx, openvino, saved_model, litert, stablehlo or pt2.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to create; by default MODEL-FORMAT.", callback=not_standard),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="Part to export: image, text, both or classifier; by default both towers of an ALIGN, else the classifier.",
            show_default=False,
        ),
    ] = None,
    input: Annotated[
        str,
        typer.Option(
            help="Format of the input images: float (pixel_values, as the processor gives them), uint8 (RGB at the model's "
            "size, normalised in the graph), picture (of any size, resized in the graph too)."
        ),
    ] = "float",
    normalize: Annotated[bool, typer.Option(help="Scale embeddings to length 1.")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(help="Store weights as float16, bfloat16, int8, or (onnx) int8-dynamic.", show_default=False),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            help="Lowest cosine to the source; by default 0.9999, for 16-bit weights 0.999, for 8-bit weights 0.99.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write the export even if its outputs differ too much.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print export.json.")] = False,
    revision: RevisionOption = None,
) -> None:
    """Export a model to another runtime, and compare it with its source there.

    OUTPUT is written only if the exported model gives the same outputs as its source. It contains the model, the tokenizer,
    and export.json, which says how to call the model.

    [b]Examples[/b]

      kakao-models export align-small --to onnx --input uint8 --normalize

      kakao-models export kakaobrain/align-base --to openvino -o models/ --quantize int8

      kakao-models export kakaobrain/vit-large-patch16-384 --to saved_model --what classifier
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
    from kakao_models.checkpoint.hub import called
    from kakao_models.export.exporter import export as write, summary

    where = prepare(model, revision)
    output = output or Path(f"{called(model).rpartition('/')[2]}-{to}")
    with contextlib.redirect_stdout(sys.stderr):  # where converters print
        sheet = write(
            model, output, to=to, what=what, input=input, normalize=normalize, quantize=quantize,
            min_cosine=min_cosine, force=force, **where,
        )  # fmt: skip
    tell(sheet, summary(sheet, output), as_json)
