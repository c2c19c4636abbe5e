"""The grammar of `data.pkl`, the part of a `.pt` file that says how its tensors are put together.

Written and read here without the pickle machine: reading builds plain data and can run nothing. Only what
`torch.save` writes for dense tensors in plain containers is understood; anything else is an unknown layout, which the
caller hands to `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAIN_FIELD = "vision_features"  # of a dict: the tensor that a reader's options mean
STORAGE_OF = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
ITEM_BYTES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
_DTYPE_OF = {f"torch {storage}": dtype for dtype, storage in STORAGE_OF.items()}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_MAX_BYTES = 1 << 20
_MAX_NODES = 10_000
_MAX_DEPTH = 50
_MAX_INT_BYTES = 255


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's place in a layout: the storage record that holds nothing else, its dtype and its shape."""

    storage: str  # the record is `<root>/data/<storage>`
    dtype: str  # as in torch.<dtype>
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * ITEM_BYTES[self.dtype]


class UnknownLayout(ValueError):
    """Not what `torch.save` writes for dense tensors in plain containers, or too large to be taken apart here."""


def emit(tree: object) -> bytes:
    """The pickle (protocol 2) of containers, scalars and `TensorPlace`s, without memo: equal trees, equal bytes.

    Raises:
        TypeError: an integer of more than 255 bytes, which `torch.load` refuses.
    """
    parts: list[bytes] = [b"\x80\x02"]
    _emit(tree, parts.append)
    parts.append(b".")
    return b"".join(parts)


def _emit(node: object, out: Callable[[bytes], None]) -> None:
    if node is None:
        out(b"N")
    elif isinstance(node, bool):
        out(b"\x88" if node else b"\x89")
    elif isinstance(node, int):
        out(_int(node))
    elif isinstance(node, float):
        out(b"G" + struct.pack(">d", node))
    elif isinstance(node, str):
        text = node.encode("utf-8", "surrogatepass")
        out(b"X" + struct.pack("<I", len(text)) + text)
    elif isinstance(node, TensorPlace):
        _emit_tensor(node, out)
    elif isinstance(node, dict):
        _emit_many(b"}(", [part for item in node.items() for part in item], b"u", out)
    elif isinstance(node, list):
        _emit_many(b"](", node, b"e", out)
    elif isinstance(node, tuple):
        _emit_many(b"(", list(node), b"t", out)
    else:
        raise TypeError(f"{type(node).__name__} has no place in a feature")


def _emit_many(opening: bytes, nodes: list[object], closing: bytes, out: Callable[[bytes], None]) -> None:
    out(opening)
    for node in nodes:
        _emit(node, out)
    out(closing)


def _int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(encoded) > _MAX_INT_BYTES:
        raise TypeError(f"an integer of {len(encoded)} bytes; torch.load takes at most {_MAX_INT_BYTES}")
    return b"\x8a" + bytes([len(encoded)]) + encoded


def _emit_tensor(place: TensorPlace, out: Callable[[bytes], None]) -> None:
    count = place.nbytes // ITEM_BYTES[place.dtype]
    out(b"c" + _REBUILD.replace(" ", "\n").encode() + b"\n((")
    _emit("storage", out)
    out(f"ctorch\n{STORAGE_OF[place.dtype]}\n".encode())
    for part in (place.storage, "cpu", count):
        _emit(part, out)
    out(b"tQK\x00")
    _emit(place.shape, out)
    _emit(_contiguous(place.shape), out)
    out(b"\x89c" + _ORDERED.replace(" ", "\n").encode() + b"\n)RtR")


def float_behind(content: bytes, key: str) -> float | None:
    """The float that a dict in a pickle of `emit` has last under `key`, without taking the pickle apart.

    `content` may go on behind the pickle. None where that is not found: another writer's pickle may still have it.
    """
    mark: list[bytes] = []
    _emit(key, mark.append)
    found = content.rpartition(mark[0] + b"G")[2]
    return None if len(found) == len(content) or len(found) < 8 else float(struct.unpack_from(">d", found)[0])


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def parse(content: bytes) -> object:
    """The tree of containers, scalars and `TensorPlace`s that a pickle describes.

    Raises:
        UnknownLayout: anything that `emit` and `torch.save` do not write for such a tree, damage included.
    """
    if len(content) > _MAX_BYTES:
        raise UnknownLayout(f"{len(content)} bytes of pickle")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        tree = machine.result()
    except UnknownLayout:
        raise
    except Exception as exc:
        raise UnknownLayout(f"{type(exc).__name__}: {exc}") from exc
    places = list(_checked(tree))
    if len({place.storage for place in places}) != len(places):
        raise UnknownLayout("tensors share a storage")
    return tree


class _Mark:
    """Where a container's parts begin on the stack."""


@dataclass(frozen=True)
class _Name:
    """A global by name; nothing is imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A persistent id as torch writes it."""

    key: str
    dtype: str
    count: int


class _Hooks:
    """The empty OrderedDict that stands where backward hooks would be."""


class _Machine:
    """The few pickle opcodes that torch uses, on plain data."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._is_over = False

    def result(self) -> object:
        if not self._is_over or len(self._stack) != 1:
            raise UnknownLayout("no single object")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("APPENDS", "APPEND"):
            parts = self._pop_to_mark() if name == "APPENDS" else [stack.pop()]
            _exactly(stack[-1], list).extend(parts)
        elif name in ("SETITEMS", "SETITEM"):
            self._set_items(self._pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()])
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduced(stack.pop(), arguments))
        elif name == "STOP":
            self._is_over = True
        elif name != "PROTO":
            raise UnknownLayout(f"opcode {name}")

    def _pop_to_mark(self) -> list[Any]:
        for position in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[position], _Mark):
                parts = self._stack[position + 1 :]
                del self._stack[position:]
                return parts
        raise UnknownLayout("no mark")

    def _set_items(self, parts: list[Any]) -> None:
        target = _exactly(self._stack[-1], dict)
        if len(parts) % 2:
            raise UnknownLayout("a key without a value")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if type(key) not in (str, int):
                raise UnknownLayout("a key that is neither str nor int")
            target[key] = value


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")


def _exactly(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UnknownLayout(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _storage(found: Any) -> _Storage:
    kind, storage, key, location, count = _exactly(found, tuple)
    if kind != "storage" or location != "cpu" or type(count) is not int or count < 0 or type(key) is not str:
        raise UnknownLayout("not a storage of the CPU")
    if not key.isdecimal() or not key.isascii():
        raise UnknownLayout(f"storage {key!r}")
    return _Storage(key, _DTYPE_OF[_exactly(storage, _Name).name], count)


def _reduced(function: Any, arguments: Any) -> object:
    name = _exactly(function, _Name).name
    if name == _ORDERED and arguments == ():
        return _Hooks()
    if name != _REBUILD:
        raise UnknownLayout(f"a call of {name}")
    storage, offset, shape, strides, requires_grad, hooks = _exactly(arguments, tuple)
    _exactly(storage, _Storage)
    _exactly(hooks, _Hooks)
    lengths = [*_exactly(shape, tuple), *_exactly(strides, tuple)]
    if requires_grad is not False or offset != 0 or any(type(length) is not int for length in lengths):
        raise UnknownLayout("a view, or a tensor with a gradient")
    if any(length < 0 or length > 1 << 48 for length in lengths) or len(shape) != len(strides) or len(shape) > 64:
        raise UnknownLayout("an impossible shape")
    place = TensorPlace(storage.key, storage.dtype, shape)
    expected = _contiguous(shape)
    is_dense = all(length == 1 or stride == want for length, stride, want in zip(shape, strides, expected, strict=True))
    if place.nbytes != storage.count * ITEM_BYTES[storage.dtype] or not (is_dense or storage.count == 0):
        raise UnknownLayout("a part of a storage, or strides")
    return place


def _checked(tree: object) -> Iterator[TensorPlace]:
    """All tensors of a tree that is finite and small, which shared and recursive objects could prevent."""
    pending = [(tree, 0)]
    nodes = 0
    while pending:
        node, depth = pending.pop()
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise UnknownLayout("too large or too deep")
        if isinstance(node, TensorPlace):
            yield node
        elif isinstance(node, dict):
            pending += [(inner, depth + 1) for inner in node.values()]
        elif isinstance(node, list | tuple):
            pending += [(inner, depth + 1) for inner in node]
        elif node is not None and not isinstance(node, int | float | str):
            raise UnknownLayout(f"a stray {type(node).__name__}")


def places(tree: object) -> list[TensorPlace]:
    """All tensors of a parsed or prepared tree, in no particular order."""
    return list(_checked(tree))


def filled(tree: object, tensor_at: Callable[[TensorPlace], object]) -> object:
    """A copy of the tree with each place replaced by what `tensor_at` gives for it."""
    if isinstance(tree, TensorPlace):
        return tensor_at(tree)
    if isinstance(tree, dict):
        return {key: filled(inner, tensor_at) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [filled(inner, tensor_at) for inner in tree]
    if isinstance(tree, tuple):
        return tuple(filled(inner, tensor_at) for inner in tree)
    return tree
