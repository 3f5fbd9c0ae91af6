"""Read a file of torch.save that nobody vouches for: bounded in types, size and time, and no code of it runs.

`torch.load(weights_only=True)` runs no foreign code either. But it unpacks compressed archives of any size, and calls
some constructors, such as bytearray's, with any size that the file asks for. Here classes and functions are never
looked up by their names: what is not a tensor, a plain value or an argparse.Namespace becomes an `Unread`.
"""

import math
import pickle
import pickletools
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import UserError

MAX_PICKLE_BYTES = 64 * 2**20  # without tensors a checkpoint of fairseq has less than 10 MB
MAX_OPERATIONS = 2_000_000  # about two seconds; a checkpoint with a vocabulary of 50,000 types has 400,000
MAX_EXPANDED = 20_000_000  # parts, each counted as often as it is referred to
MAX_NUMBER = 2**63
MAX_DIMENSIONS = 8
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_REGISTERED_TYPES = ("EXT1", "EXT2", "EXT4")
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_MARKED = (pickletools.markobject, pickletools.stackslice)
_HASHES, _HASHES_INTO = ("DICT", "FROZENSET"), ("SETITEM", "SETITEMS", "ADDITEMS")
_RECALL = ("GET", "BINGET", "LONG_BINGET")


class Unread:
    """Stand in for an object of a class, or the result of a function, that is not looked up.

    Attributes:
        state: What the object would have been given.
    """

    def __new__(cls, *arguments: Any) -> "Unread":
        """Keep the arguments."""
        unread = super().__new__(cls)
        unread.state = arguments
        return unread

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop an item of what may be a subclass of dict."""

    def append(self, item: Any) -> None:
        """Drop an item of what may be a subclass of list."""

    add = append


class _Data:
    """A tensor or the data of some, which nothing in the file can change."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        """Refuse a state: that of a tensor could make it larger than its data."""
        raise _RefusedError("it holds a damaged tensor")


class _RefusedError(ValueError):
    """A file that is not read; the message is the reason, in a clause."""


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Read a file that torch.save wrote, in either of its formats.

    Returns:
        Its dictionary: tensors on the CPU, plain values, `argparse.Namespace`, and `Unread` for everything else.

    Raises:
        UserError: There is no such file, it is no torch file of a dictionary, or it is larger or of other types than a
            checkpoint.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            file.seek(0)
            contents = _read_zip(file) if is_zip else _read_legacy(file)
    except OSError as error:
        raise UserError(f"can't open the checkpoint {path}: {error.strerror}; check the path") from error
    except _RefusedError as error:
        raise UserError(f"can't read the checkpoint {path}: {error}; give one that fairseq's training wrote") from error
    except Exception as error:  # which one is up to the file
        raise UserError(
            f"can't read the checkpoint {path}: it is not a file that torch.save wrote, is cut off, or holds more than "
            "tensors and settings; give a whole one, or one with its entries 'model' and 'args' or 'cfg' alone"
        ) from error
    if not isinstance(contents, dict):
        raise UserError(f"the checkpoint {path} holds a {type(contents).__name__}; it must be a dictionary")
    return {key: _tensors_of(value) for key, value in contents.items()}


def _tensors_of(value: Any) -> Any:
    """Return the tensor of an entry, or of each value of an entry that is a dictionary."""
    if isinstance(value, dict):
        return {key: item.tensor if isinstance(item, _Data) else item for key, item in value.items()}
    return value.tensor if isinstance(value, _Data) else value


class _Unpickler(pickle.Unpickler):
    """Unpickle tensors and plain data; the names of classes and functions only choose among those listed here."""

    def __init__(self, file: IO[bytes], load_storage: Callable[[str, torch.dtype, int], torch.Tensor]) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Return a replacement of the class or function; nothing is imported.

        It is a new one each time, since a pickle can set attributes of it.
        """
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        full_name = f"{module}.{name}"
        functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": _rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
        }
        if full_name in functions:
            return partial(functions[full_name])
        classes: dict[str, type] = {"argparse.Namespace": Namespace, "collections.OrderedDict": OrderedDict}
        base = classes.get(full_name, Unread)
        return type(base.__name__, (base,), {})

    def persistent_load(self, saved_id: Any) -> Any:
        """Return the storage, or the class whose source code was saved with it."""
        kind, *rest = saved_id
        if kind == "module":
            return rest[0]
        dtype, key, _, numel, *view = rest
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not _is_number(numel):
            raise _RefusedError("it holds tensors of an unusual type")
        if type(key) not in (str, int):
            raise _RefusedError("it holds a damaged tensor")
        storage = _Data(self._load_storage(str(key), dtype, numel))
        if view and view[0] is not None:
            _, offset, size = view[0]
            storage = _rebuild_tensor(storage, offset, (size,), (1,))
        return storage


def _is_number(value: Any) -> bool:
    """Tell whether a value is an integer that a size, an offset or a stride can be."""
    return type(value) is int and 0 <= value < MAX_NUMBER


def _rebuild_tensor(data: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Data:
    """Make a tensor of elements of a storage, a flat tensor, none of which it has twice."""
    numbers = (offset, *size, *stride)
    if not isinstance(data, _Data) or data.tensor.dim() != 1 or len(size) != len(stride):
        raise _RefusedError("it holds a damaged tensor")
    if len(size) > MAX_DIMENSIONS or not all(map(_is_number, numbers)):
        raise _RefusedError("it holds a damaged tensor")
    storage = data.tensor
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    numel = math.prod(size)
    if numel > len(storage) or (numel > 0 and last >= len(storage)):
        raise _RefusedError("it holds a tensor that is larger than its data")
    return _Data(torch.as_strided(storage, size, stride, offset))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _read_zip(file: IO[bytes]) -> Any:
    """Read the format since torch 1.6: an archive with data.pkl and a file for each storage, nothing compressed."""
    file_bytes = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _RefusedError("it is compressed, as torch.save never writes it")
        if sum(entry.file_size for entry in entries) > file_bytes:
            raise _RefusedError("its parts are larger than the file")
        by_name = {entry.filename: entry for entry in entries}
        (pickled,) = [name for name in by_name if name.endswith("/data.pkl")]
        if by_name[pickled].file_size > MAX_PICKLE_BYTES:
            raise _RefusedError(f"it has more than {MAX_PICKLE_BYTES:,} bytes of settings")
        prefix = pickled.removesuffix("data.pkl")
        if f"{prefix}byteorder" in by_name and archive.read(f"{prefix}byteorder") != b"little":
            raise _RefusedError("it was written on a big-endian machine")
        storages: dict[str, torch.Tensor] = {}

        def load_storage(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
            if key not in storages:
                if by_name[f"{prefix}data/{key}"].file_size != numel * dtype.itemsize:
                    raise _RefusedError("it holds a tensor of another size than its data")
                data = bytearray(archive.read(f"{prefix}data/{key}"))
                storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return storages[key]

        with archive.open(pickled) as stream:
            _check_pickle(stream, pickles=1)
        with archive.open(pickled) as stream:
            return _Unpickler(stream, load_storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """Read the format before torch 1.6: five pickles, of which the fourth is the object, then the storages in a row."""
    file_bytes = file.seek(0, 2)
    file.seek(0)
    _check_pickle(file, pickles=5)
    file.seek(0)
    storages: dict[str, torch.Tensor] = {}

    def load_storage(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        if key not in storages:
            allocated = sum(storage.numel() * storage.itemsize for storage in storages.values())
            if allocated + numel * dtype.itemsize > file_bytes:
                raise _RefusedError("its tensors are larger than the file")
            storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    magic, _, _, contents, keys = (_Unpickler(file, load_storage).load() for _ in range(5))
    if magic != _LEGACY_MAGIC:
        raise _RefusedError("it is not a file that torch.save wrote")
    for key in keys:
        storage = storages[str(key)]
        numel = int.from_bytes(file.read(8), "little")
        data = storage.view(torch.uint8).numpy() if len(storage) else bytearray()
        if numel != len(storage) or file.readinto(data) != numel * storage.itemsize:  # type: ignore[attr-defined] # a file has it
            raise _RefusedError("it is cut off")
    return contents


class _BoundedReader:
    """Read a stream up to a number of bytes."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left = stream, limit

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left <= 0:
            raise _RefusedError(f"it has more than {MAX_PICKLE_BYTES:,} bytes of settings")
        return data

    def read(self, size: int) -> bytes:
        return self._count(self._stream.read(min(size, self._left)))

    def readline(self) -> bytes:
        return self._count(self._stream.readline(self._left))


def _check_pickle(stream: IO[bytes], pickles: int) -> None:
    """Go through the operations of some pickles in a row; none is carried out.

    Raises:
        _RefusedError: There are too many, or one that a checkpoint does not need or that would take much memory.
    """
    reader: Any = _BoundedReader(stream, MAX_PICKLE_BYTES)
    count = 0
    for _ in range(pickles):
        sizes = _ExpandedSizes()
        for operation, argument, _ in pickletools.genops(reader):
            count += 1
            if count > MAX_OPERATIONS:
                raise _RefusedError(f"its settings have more than {MAX_OPERATIONS:,} parts")
            if operation.name in _REGISTERED_TYPES or (operation.name in _MEMO and int(argument or 0) > MAX_OPERATIONS):
                raise _RefusedError("its settings are damaged")
            sizes.follow(operation, argument)


class _ExpandedSizes:
    """The objects on a pickle's stack, of which only the sizes are kept.

    A tuple of a tuple twice, and so on 60 times, is a short pickle that takes 2^60 steps to hash, print or compare.
    """

    def __init__(self) -> None:
        self._hashed = 0  # of all keys of dictionaries and members of sets
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, operation: Any, argument: Any) -> None:
        """Follow an operation.

        Raises:
            _RefusedError: An object has too many parts, or the stack too few for the operation.
        """
        if operation.name == "MARK":
            self._marks.append(len(self._stack))
            return
        if operation.name in _RECALL:
            self._stack.append(self._memo[int(argument)])
            return
        if operation.name in (*_MEMO, "MEMOIZE"):
            self._memo[len(self._memo) if operation.name == "MEMOIZE" else int(argument)] = self._stack[-1]
            return
        if operation.name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
            return
        start = len(self._stack) - len([each for each in operation.stack_before if each not in _MARKED])
        if pickletools.markobject in operation.stack_before:
            start = self._marks.pop() - operation.stack_before.index(pickletools.markobject)
        if start < 0:
            raise _RefusedError("its settings are damaged")
        size = 1 + sum(self._stack[start:])
        if operation.name in _HASHES:
            self._hashed += sum(self._stack[start:])
        elif operation.name in _HASHES_INTO:  # into the first of them
            self._hashed += sum(self._stack[start + 1 :])
        if max(size, self._hashed) > MAX_EXPANDED:
            raise _RefusedError(f"its settings have more than {MAX_EXPANDED:,} parts")
        self._stack[start:] = [size] * len(operation.stack_after)
