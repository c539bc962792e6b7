"""TensorFlow checkpoints, read and written without TensorFlow; where it is installed, with it on the other side.

tests/golden/checkpoints/ holds files that the original programs wrote (TensorFlow 2.4 and 2.8).
"""

import hashlib
import json
import os
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import goldens
import numpy as np
import pytest
from conversion.object_graphs import find, names_of, read_graph
from fuzz.fuzz_tensorflow import CHECKPOINTS, fuzz

from kakao_models.conversion import bundle, sstable
from kakao_models.conversion.object_graph import OBJECT_GRAPH, SUFFIX, key_of, kind_of, path_of
from kakao_models.conversion.tensorflow import open_checkpoint, write_checkpoint
from kakao_models.files import wire
from kakao_models.files.wire import CheckpointError

# name → SHA-256 (the first half) over all tensors in the order of keys, as TensorFlow 2.21 reads them
DIGESTS = {
    "align_nano": "8c1db9b86ed9e0c27df850ead4e8f046",
    "vit_nano_ckpt": "0e7427cccd7f8f43a487019c73adcb62",
    "vit_nano_ema_ckpt": "cefe048a5c45487efb38a3b8e927009c",
    "vit_nano_model_weights": "a3c3bc5b401f8440a5400fb508718226",
    "vit_nano_backbone_weights": "6528e01999eef782273cb09f0a1c893f",
    "vit_nano_adamw_ckpt": "dcc55d5478856d47e57b141d66e5c654",
}
FORMULA = ["align_nano", "vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_backbone_weights"]
A, B = key_of("a"), key_of("b")


def manifest(name: str) -> dict:
    return json.loads((goldens.FOLDER / f"manifest_{name}.json").read_text())


def slot_key(key: str, slot: str, optimizer: str = "optimizer") -> str:
    """The key of what an optimizer keeps beside a variable."""
    return f"{path_of(key)}/.OPTIMIZER_SLOT/{optimizer}/{slot}{SUFFIX}"


def copies(checkpoint) -> dict:
    """What `write_checkpoint` takes, in the order of the data file."""
    keys = sorted(checkpoint.entries, key=lambda key: checkpoint.entries[key].offset)
    return {key: partial(checkpoint.read, key) for key in keys if key != OBJECT_GRAPH}


def small(folder: Path) -> Path:
    """The prefix of a checkpoint of two tensors."""
    write_checkpoint(folder / "x", {A: np.arange(6, dtype=np.float32).reshape(2, 3), B: np.int64(7)})
    return folder / "x"


def forge(prefix: Path, change) -> None:
    """Rewrites the index, with right checksums: `change` gets key → message, as bytes."""
    index = Path(f"{prefix}.index")
    table = sstable.read_table(index.read_bytes())
    change(table)
    index.write_bytes(sstable.write_table(table.items()))


def lie(prefix: Path, key: str = A, **values) -> None:
    def change(table):
        table[key.encode()] = bundle.entry_message(replace(bundle.read_entry(table[key.encode()]), **values))

    forge(prefix, change)


# What the original programs wrote


@pytest.mark.parametrize("name", DIGESTS)
def test_entries_are_those_that_the_original_program_wrote(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    variables = manifest(name)["variables"]
    assert {key: list(entry.shape) for key, entry in checkpoint.entries.items()} == {
        entry["key"]: entry["shape"] for entry in variables
    }
    digest = hashlib.sha256()
    for key in sorted(checkpoint.entries):
        tensor = checkpoint.read(key)
        integer = key.startswith(("save_counter", "ckpt_saved_iterations")) or key.endswith("/iter" + SUFFIX)
        assert tensor.dtype == (object if key == OBJECT_GRAPH else np.int64 if integer else np.float32), key
        digest.update(tensor.item() if key == OBJECT_GRAPH else tensor.tobytes())
    assert digest.hexdigest()[:32] == DIGESTS[name]


@pytest.mark.parametrize("name", FORMULA)
def test_weights_are_the_formula_weights(name):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    original = goldens.load(name).original
    assert original.keys() == {path_of(key) for key in checkpoint.entries if kind_of(key) == "weight"}
    for path, values in original.items():
        np.testing.assert_array_equal(checkpoint.read(key_of(path)), values, err_msg=path, strict=True)


@pytest.mark.parametrize("name", DIGESTS)
def test_written_again_files_have_the_same_bytes(name, tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    write_checkpoint(tmp_path / checkpoint.prefix.name, copies(checkpoint), checkpoint.read(OBJECT_GRAPH).item())
    for file in (CHECKPOINTS / name).iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", DIGESTS)
def test_keys_are_paths_in_the_objects_of_the_original_program(name, tmp_path):
    """By these names TensorFlow finds the variables, so a graph of the keys' names is enough for restoring."""
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    again = write_checkpoint(tmp_path / "x", copies(checkpoint))
    keys = checkpoint.entries.keys() - {OBJECT_GRAPH}
    for graph in (read_graph(checkpoint), read_graph(again)):
        assert names_of(graph).keys() == keys
        slots = set()
        for node in graph:
            for variable, slot, number in node.slots:
                (key,) = graph[variable].keys
                optimizer = "optimizer" if find(graph, "optimizer") is node else "optimizer/base_optimizer"
                assert find(graph, optimizer) is node
                assert graph[number].keys == [slot_key(key, slot, optimizer)]
                slots.add(slot_key(key, slot, optimizer))
        for key in keys - slots:
            assert find(graph, path_of(key)).keys == [key]
        assert slots == {key for key in keys if kind_of(key) == "optimizer_slot"}
    for key in keys:
        np.testing.assert_array_equal(again.read(key), checkpoint.read(key), err_msg=key, strict=True)


def test_a_variable_may_have_several_names():
    names = names_of(read_graph(open_checkpoint(CHECKPOINTS / "align_nano")))
    table = "text_encoder/layer_with_weights-0/bert/embeddings/"
    assert names[key_of(table + "embeddings")] == {"embeddings", "position_embeddings"}
    assert names[key_of(table + "weight")] == {"weight"}
    assert names[key_of("temperature")] == {"temperature"}


@pytest.mark.parametrize("path", sorted(goldens.FOLDER.glob("manifest_*.json")), ids=lambda path: path.stem[9:])
def test_kinds_of_keys(path):
    for entry in json.loads(path.read_text())["variables"]:
        assert kind_of(entry["key"]) == entry["kind"], entry["key"]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        SUFFIX,
        "a/.ATTRIBUTES/OBJECT_CONFIG_JSON",
        f"a//b{SUFFIX}",
        f"a/.x{SUFFIX}",
        f"/a{SUFFIX}",
        "a" + SUFFIX * 2,
    ],
)
def test_what_is_no_key_of_a_variable_has_no_kind(key):
    assert kind_of(f"keras_api/metrics/0/total{SUFFIX}") == kind_of(f"accuracy_tracker/count{SUFFIX}") == "metric"
    with pytest.raises(CheckpointError, match="key of a variable|reserved"):
        kind_of(key)


# Finding a checkpoint


def test_a_checkpoint_is_found_by_prefix_file_and_folder(tmp_path):
    prefix = small(tmp_path)
    for path in (prefix, str(prefix), f"{prefix}.index", f"{prefix}.data-00000-of-00001", tmp_path):
        checkpoint = open_checkpoint(path)
        assert checkpoint.prefix == prefix and list(checkpoint.entries) == [OBJECT_GRAPH, A, B]
        assert [file.name for file in checkpoint.files] == ["x.index", "x.data-00000-of-00001"]
    (tmp_path / "checkpoint").unlink()
    assert open_checkpoint(tmp_path).prefix == prefix  # the only one
    write_checkpoint(tmp_path / "y", {A: 1.0})
    assert open_checkpoint(tmp_path).prefix == tmp_path / "y"  # the latest
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"2 checkpoints \(x, y\) and no file `checkpoint`.* such as .*y$"):
        open_checkpoint(tmp_path)


def test_of_a_checkpoint_without_its_index_the_error_tells_what_is_left(tmp_path):
    prefix = small(tmp_path)
    assert open_checkpoint(tmp_path / "checkpoint").prefix == prefix  # the state file stands for its folder
    (tmp_path / "x.index").unlink()
    with pytest.raises(CheckpointError, match=r"here: none, only x.data-00000-of-00001. The index is written last"):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "x_temp").mkdir()
    with pytest.raises(CheckpointError, match=r"no .index file, only x.data-00000-of-00001, x_temp. The index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name, found",
    [
        ("x", "x"),
        ("./x", "x"),
        ("/home/somebody/run/x", "x"),  # where it was written
        ("run/x", "x"),
        ("sub/z", "sub/z"),
        (r"C:\\run\\x", "x"),
        (r"\170", "x"),
        ("../outside/x", None),
        ("sub/../../outside/x", None),
        ("/etc/passwd", None),
        ("sub/..", None),
        ("", None),
        ("x/", None),
        (r"x\000", None),
        (r"\9", None),
        ("n" * 5000, None),
    ],
)
def test_the_state_file_names_checkpoints_of_its_folder_only(name, found, tmp_path):
    for folder in ("inside", "inside/sub", "outside"):
        (tmp_path / folder).mkdir()
    for prefix in ("inside/x", "inside/sub/z", "outside/x"):
        write_checkpoint(tmp_path / prefix, {A: 1.0})
    (tmp_path / "inside" / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nother: 1\n')
    if found:
        assert open_checkpoint(tmp_path / "inside").prefix == tmp_path / "inside" / found
    else:
        with pytest.raises(CheckpointError, match="checkpoint: names"):
            open_checkpoint(tmp_path / "inside")


@pytest.mark.parametrize("text", ["", "model_checkpoint_path: x", 'model_checkpoint_path: "x"\n' * 2, "\n" * 100_000])
def test_a_state_file_that_names_nothing(text, tmp_path):
    small(tmp_path)
    (tmp_path / "checkpoint").write_text(text)
    with pytest.raises(CheckpointError, match="model_checkpoint_path occurs . times"):
        open_checkpoint(tmp_path)


def test_any_name_of_a_file_survives_the_state_file(tmp_path):
    write_checkpoint(tmp_path / 'a "b" 가\n', {A: 1.0})
    assert (tmp_path / "checkpoint").read_bytes().isascii()
    assert open_checkpoint(tmp_path).prefix.name == 'a "b" 가\n'


# Writing


def test_dtypes_and_layouts(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "float32": rng.standard_normal((3, 4), dtype=np.float32),
        "float64": rng.standard_normal(()),
        "float16": rng.standard_normal(5).astype(np.float16),
        "nan": np.array([0x7FC00001, 0xFF800001, 0x80000000], np.uint32).view(np.float32),
        "int32": np.array([-(2**31), 2**31 - 1], np.int32),
        "int64": np.array([-(2**63), 2**63 - 1]),
        "uint8": np.arange(256, dtype=np.uint8),
        "bool": np.array([[True], [False]]),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": np.arange(24.0).reshape(2, 3, 4).T,
        "every second": np.arange(10, dtype=np.int32)[::2],
        "big endian": np.arange(3, dtype=">f4"),
    }
    keys = {key_of(name): array for name, array in arrays.items()}
    checkpoint = write_checkpoint(tmp_path / "x", keys)
    for key, array in keys.items():
        tensor = checkpoint.read(key)
        assert (tensor.dtype, tensor.shape) == (array.dtype.newbyteorder("="), array.shape), key
        assert tensor.tobytes() == array.astype(tensor.dtype).tobytes(), key
        assert tensor.flags.writeable and tensor.flags.c_contiguous
        assert checkpoint.entries[key].dtype == array.dtype.name


def test_strings(tmp_path):
    values = {
        "scalar": b"with zeros at the end\0\0",
        "text": "가나다",
        "array": np.array([[b"", b"a\0"], [b"x" * 300, "é"]], dtype=object),
        "list": ["a", b"b\0"],
    }
    checkpoint = write_checkpoint(tmp_path / "x", {key_of(name): value for name, value in values.items()})
    tensors = {name: checkpoint.read(key_of(name)) for name in values}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(object)}
    assert tensors["scalar"].item() == b"with zeros at the end\0\0" and tensors["scalar"].shape == ()
    assert tensors["text"].item().decode() == "가나다"
    assert tensors["array"].tolist() == [[b"", b"a\0"], [b"x" * 300, "é".encode()]]
    assert tensors["list"].tolist() == [b"a", b"b\0"]


def test_bfloat16_is_widened(tmp_path):
    prefix = tmp_path / "x"
    write_checkpoint(prefix, {A: np.array([0x3F80, 0xC040, 0x7F80, 0x0001], np.uint16)})
    lie(prefix, dtype="bfloat16")
    tensor = open_checkpoint(prefix).read(A)
    np.testing.assert_array_equal(tensor, np.float32([1, -3, np.inf, 2.0**-133]), strict=True)


def test_one_tensor_at_a_time(tmp_path):
    alive = []

    def tensor(number):
        assert not [ref for ref in alive if ref() is not None]
        array = np.full(1000, number)
        alive.append(weakref.ref(array))
        return array

    keys = [key_of(f"t{number}") for number in (2, 0, 1)]
    checkpoint = write_checkpoint(tmp_path / "x", {key: partial(tensor, number) for number, key in enumerate(keys)})
    assert sorted(keys, key=lambda key: checkpoint.entries[key].offset) == keys
    assert [checkpoint.read(key)[0] for key in keys] == [0, 1, 2]


def test_an_unfinished_checkpoint_is_none(tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "x", {A: 1.0, B: stop})
    assert not list(tmp_path.iterdir())

    rename = os.replace

    def killed_before_the_index(source, target):
        if str(target).endswith(".index"):
            raise OSError("no more")
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed_before_the_index)
    with pytest.raises(OSError, match="no more"):
        write_checkpoint(tmp_path / "x", {A: 1.0})
    assert [file.name for file in tmp_path.iterdir()] == ["x.data-00000-of-00001"]  # no index: no checkpoint
    monkeypatch.undo()
    assert write_checkpoint(tmp_path / "x", {A: 2.0}).read(A) == 2.0


def test_what_is_not_written(tmp_path):
    prefix = small(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="x.index already exists"):
        write_checkpoint(prefix, {A: 1.0})
    for tensors, message in (
        ({A: 1j}, f"{A}: dtype complex128, expected one of float32"),
        ({A: [object()]}, f"{A}: got Python objects, expected"),
        ({"a": 1.0}, "a: expected the key of a variable"),
        ({slot_key(A, "m"): 1.0}, f"a slot variable of {A}, which is missing"),
        ({OBJECT_GRAPH: b""}, "Pass it as graph"),
        ({key_of("n" * 2000): 1.0}, "new bytes"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            write_checkpoint(tmp_path / "y", tensors)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_large_table():
    pairs = {
        f"{number % 7}/{number:06d}/kernel".encode(): bytes([number % 256]) * (number % 50) for number in range(20_000)
    }
    pairs[b"\xff\xff"] = b"last"
    table = sstable.write_table(sorted(pairs.items()))
    assert len(table) > 2 << 18  # more than one block
    assert list(sstable.read_table(table).items()) == sorted(pairs.items())
    assert sstable.read_table(sstable.write_table([])) == {}


# Hostile input


def test_missing_and_short_files(tmp_path):
    prefix = small(tmp_path)
    data = Path(f"{prefix}.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match=rf"x\.index: tensor {OBJECT_GRAPH}: bytes 32 to .* of {data.name}, which has"
    ):
        open_checkpoint(prefix)
    data.write_bytes(content)
    checkpoint = open_checkpoint(prefix)
    data.write_bytes(content[:20])  # after it was opened
    with pytest.raises(CheckpointError, match=rf"{data.name}: {A}: the file ends within the tensor"):
        checkpoint.read(A)
    data.unlink()
    with pytest.raises(CheckpointError, match=rf"{data.name}: .*can't be read"):
        checkpoint.read(A)
    with pytest.raises(CheckpointError, match=rf"{data.name}: can't be read.*Is the download complete"):
        open_checkpoint(prefix)
    os.mkfifo(data)  # opening it would wait for a writer
    with pytest.raises(CheckpointError, match=f"{data.name}: not a regular file"):
        open_checkpoint(prefix)
    for path in (tmp_path / "nothing", tmp_path / ("n" * 5000), "", "zero\0"):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_every_byte_of_a_tensor_is_checked(tmp_path):
    prefix = small(tmp_path)
    data = Path(f"{prefix}.data-00000-of-00001")
    content = data.read_bytes()
    for at in range(len(content)):
        data.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        checkpoint = open_checkpoint(prefix)
        key = next(key for key, e in checkpoint.entries.items() if e.offset <= at < e.offset + e.size)
        with pytest.raises(CheckpointError, match=f"{data.name}: {key}: "):
            checkpoint.read(key)


def test_every_byte_of_the_index_is_checked(tmp_path):
    prefix = small(tmp_path)
    index = Path(f"{prefix}.index")
    content = index.read_bytes()
    for at in range(len(content)):
        for damaged in (content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], content[:at]):
            index.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"x\.index: "):
                open_checkpoint(prefix)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dtype": "float64"}, r"shape \(2, 3\) of float64 needs 48 bytes, got 24"),
        ({"dtype": "string", "shape": (21,)}, r"shape \(21,\) of strings in 24 bytes"),
        ({"shape": (3, 3)}, "needs 36 bytes, got 24"),
        ({"shape": (2**62, 2**62)}, "too large"),
        ({"shape": (2**64 - 1, 6)}, "too large"),
        ({"shape": (0, 2**63), "size": 0}, "too large"),
        ({"shape": (1,) * 60}, "60 dimensions"),
        ({"shape": (2**29,), "size": 2**31}, "bytes 0 to 2147483648 of x.data-00000-of-00001, which has"),
        ({"offset": 2**63}, "which has"),
        ({"offset": 4}, f"its bytes overlap those of {A}"),
        ({"shard": 1}, "is in data file 1 .* only 1"),
        ({"shard": 2**64 - 1}, "is in data file 18446744073709551615 .* only 1"),
    ],
)
def test_lies_about_a_tensor(values, message, tmp_path):
    prefix = small(tmp_path)
    lie(prefix, **values)
    with pytest.raises(CheckpointError, match=rf"x\.index: tensor .*{message}"):
        open_checkpoint(prefix).read(A)


def test_lies_that_only_reading_shows(tmp_path):
    prefix = small(tmp_path)
    lie(prefix, crc32c=1)
    with pytest.raises(CheckpointError, match=f"{A}: checksum .* but 00000001 was written"):
        open_checkpoint(prefix).read(A)
    lie(prefix, dtype="string")
    with pytest.raises(CheckpointError, match=f"{A}: its strings need 0 bytes, but the data has 14"):
        open_checkpoint(prefix).read(A)
    write_checkpoint(tmp_path / "bool", {A: np.uint8([0, 1, 2])})
    lie(tmp_path / "bool", dtype="bool")
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        open_checkpoint(tmp_path / "bool").read(A)
    with pytest.raises(CheckpointError, match=r"x\.index: no tensor 'c' among 3"):
        open_checkpoint(prefix).read("c")


def put(key: bytes, value: bytes):
    def change(table):
        pairs = {**table, key: value}
        table.clear()
        table.update(sorted(pairs.items()))

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.pop(b""), "no header"),
        (put(b"", b"\x08\x01\x10\x01"), "header: its values are big-endian"),
        (put(b"", b"\x08\x01\x1a\x02\x10\x02"), "header: the version of the format is above 1"),
        (put(b"", b""), "header: no data files"),
        (put(b"", wire.number_field(1, 2**64 - 1)), "can't be read"),
        (put(b"", b"\x0a\xff\xff\xff\xff\x07"), "field 1 has 2147483647 bytes according to its header, but 0 are left"),
        (put(b"", b"\x08" + b"\xff" * 20), "header: expected a number of at most 64 bits"),
        (put(b"", b"\x0d\0\0\0\0"), "has wire type 5, expected 0"),
        (put(b"", b"\x0b"), "has the unknown wire type 3"),
        (put(A.encode(), b"\x3a\x00"), f"tensor {A}: part of a partitioned variable"),
        (put(b"\0" + A.encode() + b"\0\1", b""), "part of a partitioned variable"),
        (put(A.encode(), wire.number_field(1, 8)), "dtype number 8, expected one of float32"),
        (put(A.encode(), b"\x08\x01\x08\x01"), "field dtype occurs 2 times"),
        (put(A.encode(), b"\x50\x01"), "field 10 is unknown"),
        (put(A.encode(), b"\x08\x01" + b"\x12\x00" * 5000), "far too many fields"),
        (put(b"\xff", b""), "isn't UTF-8"),
        (put(b"\x1b[31m", b""), "control characters"),
    ],
)
def test_forged_messages(change, message, tmp_path):
    prefix = small(tmp_path)
    forge(prefix, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(prefix)


def test_forged_tables():
    def pairs(*keys):
        return [(key, b"") for key in keys]

    for keys in ((b"a", b"a"), (b"b", b"a"), (b"ab", b"a")):
        with pytest.raises(CheckpointError, match="comes after"):
            sstable.read_table(sstable.write_table(pairs(*keys)))
    table = sstable.write_table(pairs(b"a", b"ab"))
    compressed = bytearray(table)
    block = sstable._Block(16)
    block.add(b"a", b"")
    block.add(b"ab", b"")
    size = len(sstable._append(bytearray(), block)) and block.size
    compressed[size] = 1
    compressed[size + 1 : size + 5] = sstable.mask(sstable.google_crc32c.value(bytes(compressed[: size + 1]))).to_bytes(
        4, "little"
    )
    with pytest.raises(CheckpointError, match="compressed"):
        sstable.read_table(bytes(compressed))


def test_bounds_of_a_table(monkeypatch):
    with pytest.raises(CheckpointError, match="1025 new bytes"):
        sstable.read_table(sstable.write_table([(b"k" * 1025, b"")]))
    table = sstable.write_table([(b"%04d" % number, b"v" * 100) for number in range(5000)])  # two blocks
    for name, bound, message in (("MAX_ENTRIES", 4999, "more than 4999 keys"), ("MAX_BYTES", 1000, "at most 1000")):
        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=message):
            patch.setattr(sstable, name, bound)
            sstable.read_table(table)
    assert len(sstable.read_table(table)) == 5000


def test_fuzz(tmp_path):
    """tests/fuzz/fuzz_tensorflow.py tries more."""
    results = fuzz(400, seed=1_000_000, folder=tmp_path)
    for mutation in ("damaged", "forged_index", "forged_blocks"):
        assert results[mutation, "refused"] > 20 and results[mutation, "read"] > 0, results


# With TensorFlow on the other side


def tree(tf):
    """Objects with variables of every dtype, the same at each call but for the values."""
    root = tf.Module()
    root.layers = [tf.Module() for _ in range(2)]
    for layer in root.layers:
        values = np.random.default_rng().standard_normal((7, 5))
        layer.kernel = tf.Variable(values.astype(np.float32))
        layer.shared = layer.kernel
        layer.half = tf.Variable(values.astype(np.float16))
        layer.brain = tf.Variable(tf.cast(values, tf.bfloat16))
        layer.double = tf.Variable(values[0, 0])
        layer.steps = tf.Variable((values * 1e9).astype(np.int64))
        layer.flags = tf.Variable(values > 0)
        layer.text = tf.Variable([["", "b\0"], ["x" * 300, str(values[0, 0])]])
        layer.empty = tf.Variable(np.zeros((0, 3), np.int32))
    return root


def test_tensorflow_reads_what_is_written(tmp_path):
    tf = pytest.importorskip("tensorflow")
    dtypes = pytest.importorskip("ml_dtypes")  # comes with TensorFlow
    first, second = tree(tf), tree(tf)
    values = {}
    for number, layer in enumerate(first.layers):
        for name in ("kernel", "half", "brain", "double", "steps", "flags", "text", "empty"):
            values[key_of(f"model/layers/{number}/{name}")] = getattr(layer, name).numpy()
    values[key_of("save_counter")] = np.int64(3)
    assert values[key_of("model/layers/0/brain")].dtype == dtypes.bfloat16
    prefix = str(write_checkpoint(tmp_path / "x", values).prefix)
    checkpoint = tf.train.Checkpoint(model=second)
    checkpoint.restore(prefix).assert_consumed()
    for ours, theirs in zip(first.variables, second.variables):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert checkpoint.save_counter.numpy() == 3
    assert tf.train.latest_checkpoint(str(tmp_path)) == prefix
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_variable_to_shape_map().keys() == {*values, OBJECT_GRAPH}
    for key, value in values.items():
        np.testing.assert_array_equal(reader.get_tensor(key), value)


def test_what_tensorflow_writes_is_read(tmp_path):
    tf = pytest.importorskip("tensorflow")
    prefix = tf.train.Checkpoint(model=tree(tf)).save(str(tmp_path / "x"))
    agree_with_tensorflow(tf, open_checkpoint(tmp_path), prefix)
    root = tf.Module()
    root.kernels = [tf.Variable(np.random.default_rng(0).standard_normal((n, 3))) for n in (3, 5, 7)]
    for most, refused in ((200, False), (60, True)):
        sharding = tf.train.experimental.MaxShardSizePolicy(max_shard_size=most)
        options = tf.train.CheckpointOptions(experimental_sharding_callback=sharding)
        prefix = tf.train.Checkpoint(model=root).save(str(tmp_path / str(most) / "x"), options=options)
        if refused:
            with pytest.raises(CheckpointError, match="partitioned"):
                open_checkpoint(prefix)
        else:
            checkpoint = open_checkpoint(prefix)
            assert len(checkpoint.files) > 2
            agree_with_tensorflow(tf, checkpoint, prefix)


def agree_with_tensorflow(tf, checkpoint, prefix):
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_variable_to_shape_map().keys() == checkpoint.entries.keys()
    for key, entry in checkpoint.entries.items():
        theirs = np.asarray(reader.get_tensor(key), dtype=object if entry.dtype == "string" else None)
        assert entry.dtype in ("string", theirs.dtype.name)
        theirs = theirs.astype(np.float32) if entry.dtype == "bfloat16" else theirs
        np.testing.assert_array_equal(checkpoint.read(key), theirs, err_msg=key, strict=True)


def test_a_large_index_has_the_bytes_that_tensorflow_writes(tmp_path):
    tf = pytest.importorskip("tensorflow")
    names = [key_of(f"encoder/layer-{number}/{'n' * (number % 90)}/kernel") for number in range(4000)]
    tensors = [np.float32(number) for number in range(4000)]
    graph = b"not read here"
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "x"),
        tensor_names=[*names, OBJECT_GRAPH],
        shape_and_slices=[""] * 4001,
        tensors=[*tensors, graph],
    )
    (tmp_path / "ours").mkdir()
    checkpoint = open_checkpoint(tmp_path / "x")
    write_checkpoint(tmp_path / "ours" / "x", copies(checkpoint), graph)
    assert len((tmp_path / "x.index").read_bytes()) > 2**18
    for name in ("x.index", "x.data-00000-of-00001"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / name).read_bytes(), name
