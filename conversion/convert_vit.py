"""Converts ViT checkpoints of the original program: what a maintainer runs before an upload.

    python conversion/convert_vit.py vit-l16-coyo-labeled-300m-i1k512/ckpt-20000 vit-large-patch16-512/ --labels-file imagenet.txt

The same as `kakao-models convert`, and it refuses any other model's checkpoint. docs/convert.md walks through it.
"""

import sys

from kakao_models.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:], "--family", "vit"])
