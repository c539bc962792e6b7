"""The arithmetic of EfficientNet's compound scaling: from the fields of a configuration to the blocks of the tower.

`config` is an `AlignVisionConfig`, or anything with its fields: what only runs a model reads them from config.json, and
does without transformers, whose import takes longer than all the rest.
"""

import math
from dataclasses import dataclass
from typing import Any

# The fields of a configuration that are lists with an entry for each stage
STAGE_FIELDS = ("in_channels", "out_channels", "kernel_sizes", "strides", "expand_ratios", "num_block_repeats")


@dataclass(frozen=True)
class BlockSpec:
    """One inverted-residual block of the image tower."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expand_ratio: int
    se_channels: int  # width inside squeeze-and-excite
    drop_rate: float  # drop-connect
    skip: bool  # whether the input is added to the output
    symmetric_padding: bool  # only where the configuration lists the block in depthwise_padding

    @property
    def expanded_channels(self) -> int:
        return self.in_channels * self.expand_ratio


def round_filters(config: Any, channels: int) -> int:
    """`channels` scaled by the width, to a multiple of `depth_divisor` that is at most 10 % lower."""
    expected, divisor = channels * config.width_coefficient, config.depth_divisor
    rounded = max(divisor, int(expected + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * expected else rounded)


def output_channels(config: Any) -> int:
    """Width of the last block, which is the width of the tower's pooled output."""
    return round_filters(config, config.out_channels[-1])


def pools_by_mean(config: Any) -> bool:
    """Whether the tower's pooled output is the mean over positions of the last block's map; else it is the maximum.

    Raises:
        ValueError: `pooling_type` is neither "mean" nor "max".
    """
    if config.pooling_type not in ("mean", "max"):
        raise ValueError(f"AlignVisionConfig: pooling_type must be 'mean' or 'max', got {config.pooling_type!r}")
    return config.pooling_type == "mean"


def block_specs(config: Any) -> list[BlockSpec]:
    """The inverted-residual blocks, in the order of the forward pass.

    Raises:
        ValueError: the lists differ in length, or a kernel, a stride or an expansion is of no EfficientNet.
    """
    lists = {name: getattr(config, name) for name in STAGE_FIELDS}
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise ValueError(f"expected lists with an entry for each stage, of the same length, got the lengths {lengths}")
    stages = list(zip(*lists.values()))
    repeats = [math.ceil(config.depth_coefficient * stage[-1]) for stage in stages]
    specs = []
    for (entry, exit, kernel, stride, expand, _), repeat in zip(stages, repeats):
        if stride not in (1, 2) or kernel < 1 or not kernel % 2 or expand < 1:
            raise ValueError(
                f"a stage has strides {stride!r}, kernel_sizes {kernel!r} and expand_ratios {expand!r}; expected 1 or 2, an odd number, "
                "and at least 1"
            )
        for position in range(repeat):
            width_in = round_filters(config, entry if position == 0 else exit)
            width_out = round_filters(config, exit)
            step = stride if position == 0 else 1
            specs.append(
                BlockSpec(
                    in_channels=width_in,
                    out_channels=width_out,
                    kernel_size=kernel,
                    stride=step,
                    expand_ratio=expand,
                    se_channels=max(1, int(config.squeeze_expansion_ratio * width_in)),
                    drop_rate=config.drop_connect_rate * len(specs) / sum(repeats),
                    skip=step == 1 and width_in == width_out,
                    symmetric_padding=len(specs) in config.depthwise_padding,
                )
            )
    return specs
