"""Files of torch.save that nobody vouches for."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from vanilla_transformer.convert import torch_file
from vanilla_transformer.convert.torch_file import Unread, read_torch_file
from vanilla_transformer.errors import UserError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
FLOAT = "ctorch\nFloatStorage\n"
REBUILD = "ctorch._utils\n_rebuild_tensor_v2\n"


def save(contents: object, path: Path, zipped: bool) -> None:
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)


def write_zip(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in others.items():
            archive.writestr(f"archive/data/{name}", content)


def legacy(pickled: bytes, keys: object = ()) -> bytes:
    head = b"".join(pickle.dumps(part, protocol=2) for part in (torch_file._LEGACY_MAGIC, 1001, {}))
    return head + pickled + pickle.dumps(list(keys), protocol=2)


def tensor(numel: int, size: int, stride: int = 1, offset: int = 0) -> bytes:
    """A pickle of {"a": a tensor}, from its operations."""
    numbers = [b"J" + struct.pack("<i", number) for number in (numel, offset, size, stride)]
    storage = b"(X\x07\0\0\0storage" + FLOAT.encode() + b"X\x01\0\0\0" + b"0X\x03\0\0\0cpu" + numbers[0] + b"tQ"
    shape = numbers[1] + numbers[2] + b"\x85" + numbers[3] + b"\x85\x89}"
    return b"\x80\x02}X\x01\0\0\0a" + REBUILD.encode() + b"(" + storage + shape + b"tRs."


def refusal(path: Path) -> str:
    """Why a file is refused: in one sentence with its name, quickly and without much memory."""
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        read_torch_file(path)
    assert time.perf_counter() - start < 20
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@FORMATS
def test_tensors_and_settings_are_read(zipped, tmp_path):
    base = torch.arange(12.0)
    expected = {
        "view": base.view(3, 4).t(),
        "same": base[2:5],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in torch_file.DTYPES.values()},
    }
    save(OrderedDict(expected) | {"args": Namespace(x=[1, None]), "other": Path("x")}, tmp_path / "x.pt", zipped)
    read = read_torch_file(tmp_path / "x.pt")
    for name, value in expected.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
    assert read["args"] == Namespace(x=[1, None]) and isinstance(read["other"], Unread)
    assert read["view"].untyped_storage().data_ptr() == read["same"].untyped_storage().data_ptr()


def test_the_written_tensor_is_one_that_is_read(tmp_path):
    write_zip(tmp_path / "x.pt", tensor(numel=4, size=4), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_torch_file(tmp_path / "x.pt")["a"].tolist() == [1, 2, 3, 4]
    (tmp_path / "y.pt").write_bytes(legacy(tensor(2, 2), ["0"]) + struct.pack("<q2f", 2, 5, 6))
    assert read_torch_file(tmp_path / "y.pt")["a"].tolist() == [5, 6]


def test_an_archive_that_unpacks_to_half_a_gigabyte_is_refused_at_once(tmp_path):
    """F4."""
    for name, pickled, data in (("settings", bytes(2**29), b""), ("weights", tensor(2**24, 2**24), bytes(2**26))):
        path = tmp_path / f"{name}.pt"
        write_zip(path, pickled, zipfile.ZIP_DEFLATED, **{"0": data})
        assert path.stat().st_size < 2**22
        tracemalloc.start()
        assert "it is compressed, as torch.save never writes it" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02" + b"}0" * 10**5 + b"}.", "more than 20,000 parts"),
        (b"\x80\x02" + b"(" * 10**5 + b".", "more than 20,000 parts"),
        (b"\x80\x02" + b"]" * 10**5, "more than 20,000 parts"),
        (b"\x80\x02}r\xff\xff\xff\xf0.", "its settings are damaged"),
        (b"\x80\x02}p4000000000\n.", "its settings are damaged"),
        (b"\x80\x02\x82\x01.", "its settings are damaged"),
        (b"\x80\x02X\xff\xff\xff\x7f" + b"x" * 2**26, "bytes of settings"),
        (b"\x80\x02I" + b"9" * 10**6 + b"\n.", "not a file that torch.save wrote"),
    ],
    ids=["loop", "marks", "nested", "memo", "memo as text", "extension", "one long text", "one long number"],
)
@FORMATS
def test_endless_or_huge_settings_are_refused(pickled, reason, zipped, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAX_OPERATIONS", 20_000)
    path = tmp_path / "x.pt"
    write_zip(path, pickled) if zipped else path.write_bytes(legacy(pickled))
    assert reason in refusal(path) or "bytes of settings" in refusal(path)


@FORMATS
def test_deep_nesting_is_read_or_refused(zipped, tmp_path):
    depth = 100_000
    pickled = b"\x80\x02}X\x01\0\0\0a" + b"]" * depth + b"a" * (depth - 1) + b"s."
    path = tmp_path / "x.pt"
    write_zip(path, pickled) if zipped else path.write_bytes(legacy(pickled))
    assert isinstance(read_torch_file(path)["a"], list)


@pytest.mark.parametrize(
    "pickled",
    [
        tensor(2**30, 2**30),
        tensor(4, 2**30),
        tensor(4, 2**30, stride=0),
        tensor(4, 4, offset=1),
        tensor(4, 2, stride=4),
    ],
    ids=["storage", "tensor", "expanded", "offset", "stride"],
)
@FORMATS
def test_a_tensor_that_is_larger_than_its_data_is_refused(pickled, zipped, tmp_path):
    path, data = tmp_path / "x.pt", struct.pack("<4f", 1, 2, 3, 4)
    write_zip(path, pickled, **{"0": data}) if zipped else path.write_bytes(legacy(pickled, ["0"]) + data)
    assert "it holds a tensor" in (reason := refusal(path)) or "larger than the file" in reason


def test_memory_is_not_taken_on_the_word_of_a_file(tmp_path):
    """`torch.load` calls bytearray and the like with the size that the file names, weights_only or not."""
    pickled = b"\x80\x02}X\x01\0\0\0ac__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85Rs."
    write_zip(tmp_path / "x.pt", pickled)
    tracemalloc.start()
    assert isinstance(read_torch_file(tmp_path / "x.pt")["a"], Unread)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("change", ["half", "overlapping", "two", "big-endian", "encrypted"])
def test_a_damaged_archive_is_refused(change, tmp_path):
    path = tmp_path / "x.pt"
    save({"a": torch.ones(1000)}, path, zipped=True)
    whole = path.read_bytes()
    if change == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif change == "two":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("again/data.pkl", b"\x80\x02}.")
    elif change == "big-endian":
        path.write_bytes(whole.replace(b"little", b"bigend"))
    elif change == "encrypted":
        at = whole.index(b"PK\x01\x02")
        path.write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])
    else:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("archive/data.pkl", bytes(5000))
            for i in range(50):
                entry = zipfile.ZipInfo(f"archive/data/{i}")
                entry.file_size = entry.compress_size = 5000
                entry.header_offset = entry.CRC = 0
                archive.filelist.append(entry)
            archive._didModify = True
        path.write_bytes(content.getvalue())
    assert refusal(path)


@FORMATS
def test_a_reference_to_itself_ends(zipped, tmp_path):
    contents: dict = {"args": {}}
    contents["args"]["again"] = contents["args"]
    save(contents, tmp_path / "x.pt", zipped)
    assert read_torch_file(tmp_path / "x.pt")["args"]["again"]


PUT, GET = b"q\x00", b"h\x00"


@pytest.mark.parametrize(
    "value",
    [
        b")" + b"2\x86" * 60,  # ((), ()), and that twice, and so on
        b")" + (PUT + b"0" + GET + GET + b"\x86") * 60,
        b")" + b"(02\x86" * 60,  # with a mark that is taken away again
        b")" + b"2\x86" * 20 + PUT + (b"0}" + GET + b"K\x01s") * 100 + b"0" + GET,  # a key a hundred times
    ],
    ids=["duplicated", "recalled", "marked", "often"],
)
@FORMATS
def test_a_tuple_of_itself_sixty_times_is_refused_before_it_is_a_key(value, zipped, tmp_path):
    pickled = b"\x80\x02}" + value + b"K\x01s."
    path = tmp_path / "x.pt"
    write_zip(path, pickled) if zipped else path.write_bytes(legacy(pickled))
    assert "its settings have more than 20,000,000 parts" in refusal(path)


def test_numbers_of_a_million_digits_are_not_multiplied(tmp_path):
    huge = b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6
    storage = b"(X\x07\0\0\0storage" + FLOAT.encode() + b"X\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x01tQ"
    write_zip(
        tmp_path / "x.pt",
        b"\x80\x02}X\x01\0\0\0a" + REBUILD.encode() + b"(" + storage + b"K\0(" + huge + b"t(K\x01t\x89}tRs.",
        **{"0": bytes(4)},
    )
    assert "it holds a damaged tensor" in refusal(tmp_path / "x.pt")


def test_a_state_makes_no_tensor_larger_than_its_data(tmp_path):
    start = tensor(numel=4, size=4).removesuffix(b"s.")
    write_zip(tmp_path / "x.pt", start + b"}bs.", **{"0": bytes(16)})
    assert "it holds a damaged tensor" in refusal(tmp_path / "x.pt")


def test_a_file_changes_no_class_of_this_process(tmp_path):
    change = b"N}X\x05\0\0\0stainK\x01s\x86b"  # the state (None, {"stain": 1})
    for name in ("argparse\nNamespace", "collections\nOrderedDict", "torch._utils\n_rebuild_parameter", "x\ny"):
        write_zip(tmp_path / "x.pt", b"\x80\x02}K\x01c" + name.encode() + b"\n" + change + b"s.")
        try:
            read_torch_file(tmp_path / "x.pt")
        except UserError:
            pass
    for known in (Namespace, OrderedDict, torch_file._rebuild_parameter, Unread):
        assert not hasattr(known, "stain")
