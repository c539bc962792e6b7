"""Converts ALIGN checkpoints of the original program: what a maintainer runs before an upload.

    python conversion/convert_align.py coyo-align-b7-base/ align-base/ --tokenizer bert-base-uncased

The same as `kakao-models convert`, and it refuses any other model's checkpoint. docs/convert.md walks through it.
"""

import sys

from kakao_models.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:], "--family", "align"])
