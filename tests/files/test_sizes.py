"""Sizes in bytes, as people write them."""

import pytest

from kakao_models.files.sizes import parse_bytes


def test_sizes_with_and_without_units():
    sizes = {7: 7, "2KB": 2000, "1.5 MB": 1_500_000, "5gb": 5 * 10**9, "1KiB": 1024, " 2 TiB ": 2 * 2**40}
    assert {size: parse_bytes(size, "max_shard_size") for size in sizes} == sizes


@pytest.mark.parametrize("size", ["large", "5", "0GB", "-1GB", "1.5", 0, -1, 2.5, True, None])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="max_shard_size: got .*, expected a number of bytes, or text such as 5GB"):
        parse_bytes(size, "max_shard_size")
