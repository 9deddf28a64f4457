"""How values cross the border between grader and submission.

A frame is eight bytes of length and one msgpack map. Numbers, text and containers travel as msgpack; arrays and
tensors travel beside them as safetensors. Neither format can carry code, and nothing here is ever unpickled. Every
size, depth and count is capped before it is believed, because the other side may be hostile.
"""

from __future__ import annotations

import builtins
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgpack
import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

MAX_FRAME = 512 * 2**20
MAX_REPLY = 64 * 2**20  # a byte of msgpack may become 72 bytes of Python, so what comes out is capped tighter
MAX_DEPTH = 24
MAX_NODES = 200_000
MAX_TEXT = 100_000
_MAX_PARTS = 4 * MAX_NODES  # of a message
_LENGTH = struct.Struct("<Q")


class ProtocolError(Exception):
    """The other side sent something that is not a frame of this protocol."""


class Closed(ProtocolError):
    """The other side is gone."""


@dataclass(frozen=True)
class Handle:
    """A reference to an object that stays inside the jail (a module, a cache)."""

    number: int
    type_name: str


@dataclass(frozen=True)
class Generator:
    """A source of random numbers, made anew from its seed on the other side; ``framework`` is "numpy" or "torch"."""

    seed: int
    framework: str = "torch"


@dataclass(frozen=True)
class Stream:
    """Arrays that come one after the other, once: on the other side, each is overwritten when the next is asked for."""

    pieces: tuple[Any, ...]


@dataclass(frozen=True)
class Opaque:
    """A returned value of a kind that does not travel; only the name of its type does."""

    type_name: str


def builtin_bases(error: dict[str, Any]) -> list[str]:
    """The built-in exception types that an exception claims to be an instance of; other words are left out."""
    names = error.get("bases")
    words = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    known = [getattr(builtins, name, None) for name in words]
    return [kind.__name__ for kind in known if isinstance(kind, type) and issubclass(kind, BaseException)]


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Write one frame."""
    payload = msgpack.packb(message, use_bin_type=True)
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive(connection: socket.socket, limit: int = MAX_FRAME) -> dict[str, Any]:
    """Read one frame.

    Raises:
        Closed: the connection ended.
        ProtocolError: the frame is too long or not a msgpack map.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if length > limit:
        raise ProtocolError(f"a frame of {length} bytes, more than {limit}")
    payload = _read(connection, length)
    sizes = {"max_str_len": length, "max_bin_len": length, "max_ext_len": 0}
    parts: dict[str, Any] = {}
    if length > _MAX_PARTS:  # a shorter frame has no room for as many
        count = _Count(_MAX_PARTS)
        parts = {"max_array_len": count.left, "max_map_len": count.left, "list_hook": count, "object_hook": count}
    try:
        message = msgpack.unpackb(payload, raw=False, strict_map_key=True, **sizes, **parts)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"not a msgpack frame: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a frame that is not a map")
    return message


class _Count:
    """Counts containers while msgpack makes them, and stops it: a few megabytes can hold millions."""

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, made: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ProtocolError("a message with too many parts")
        return made


def _read(connection: socket.socket, count: int) -> bytes:
    piece = _piece(connection, count) if count else b""
    if len(piece) == count:  # most frames come in one
        return piece
    buffer = bytearray(piece)
    while len(buffer) < count:
        buffer += _piece(connection, count - len(buffer))
    return bytes(buffer)


def _piece(connection: socket.socket, most: int) -> bytes:
    try:
        piece = connection.recv(min(most, 1 << 20))
    except ConnectionError:
        piece = b""
    if not piece:
        raise Closed("the connection ended")
    return piece


def encode(value: Any) -> dict[str, Any]:
    """The value as a msgpack-able map: ``tree`` and the arrays it names, as safetensors.

    A value of a kind that does not travel becomes ``Opaque``; a subclass of :class:`Encoder` may send a handle instead.
    """
    return Encoder().encode(value)


class Encoder:
    """Walks a value once and collects its arrays; subclasses decide what becomes a handle."""

    def __init__(self) -> None:
        self._numpy: dict[str, np.ndarray] = {}
        self._torch: dict[str, torch.Tensor] = {}
        self._nodes = 0

    def encode(self, value: Any) -> dict[str, Any]:
        """See :func:`encode`."""
        tree = self._node(value, 0)
        return {
            "tree": tree,
            "numpy": _saved(self._numpy, _numpy_spec) if self._numpy else b"",
            "torch": _saved(self._torch, _torch_spec) if self._torch else b"",
        }

    def other(self, value: Any) -> Any:
        """The node of a value that does not travel."""
        return {"k": "opaque", "type": type(value).__name__[:80]}

    def _node(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ProtocolError("a value nested too deeply or with too many parts")
        exact = type(value)  # most values are of these types themselves, and the rest take the long way below
        if value is None or exact is bool or exact is float:
            return value
        if exact is np.ndarray:
            return self._array(value)
        if exact is torch.Tensor:
            return self._tensor(value)
        if exact is tuple or exact is list or isinstance(value, (tuple, list)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {"k": kind, "items": [self._node(item, depth + 1) for item in value]}
        if exact is dict or isinstance(value, dict):
            items = value.items()
            return {"k": "dict", "items": [[self._node(k, depth + 1), self._node(v, depth + 1)] for k, v in items]}
        if exact is int or isinstance(value, int):
            return int(value) if -(2**63) <= int(value) < 2**63 else {"k": "opaque", "type": "int"}
        if exact is str or isinstance(value, str):
            return str(value)[:MAX_TEXT]
        if isinstance(value, float):
            return float(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.dtype):
            return {"k": "dtype", "name": value.name, "torch": False}
        if isinstance(value, torch.dtype):
            return {"k": "dtype", "name": str(value).removeprefix("torch."), "torch": True}
        if isinstance(value, Handle):
            return {"k": "handle", "number": value.number, "type": value.type_name}
        if isinstance(value, Generator):
            return {"k": "generator", "seed": value.seed, "framework": value.framework}
        if isinstance(value, Stream):
            return {"k": "stream", "items": [self._node(piece, depth + 1) for piece in value.pieces]}
        return self.other(value)

    def _array(self, value: np.ndarray | np.generic) -> Any:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            return {"k": "opaque", "type": f"array of {array.dtype}"[:80]}
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("="))
        name = str(len(self._numpy))
        node: dict[str, Any] = {"k": "numpy", "name": name}
        if array.flags.c_contiguous:
            self._numpy[name] = array
        else:
            node["order"], node["gap"] = _layout(array.shape, array.strides, array.itemsize)
            self._numpy[name] = np.array(array.transpose(node["order"]), order="C")
        if isinstance(value, np.generic):
            node["scalar"] = True
        return node

    def _tensor(self, value: torch.Tensor) -> Any:
        tensor = value.detach()
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            return {"k": "opaque", "type": f"tensor of {tensor.dtype}"[:80]}
        tensor = tensor.cpu()
        name = str(len(self._torch))
        node: dict[str, Any] = {"k": "torch", "name": name}
        if tensor.is_contiguous():
            self._torch[name] = tensor
        else:
            node["order"], node["gap"] = _layout(tuple(tensor.shape), tuple(tensor.stride()), 1)
            self._torch[name] = tensor.permute(node["order"]).contiguous()
        return node


_SOMEWHERE = torch.zeros(1)  # an empty tensor's own address may be no address


def _saved(arrays: dict[str, Any], spec: Callable[[Any], safetensors.TensorSpec]) -> bytes:
    """Contiguous arrays as safetensors: what the library's own ``save`` makes of them, in a fifth of the time."""
    return bytes(safetensors.serialize({name: spec(array) for name, array in arrays.items()}))


@cache
def name_of(dtype: torch.dtype | np.dtype) -> str:
    """What a dtype is called, the same in NumPy and in torch: "float32"."""
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


def _torch_spec(tensor: torch.Tensor) -> safetensors.TensorSpec:
    return safetensors.TensorSpec(
        dtype=name_of(tensor.dtype),
        shape=tensor.shape,
        data_ptr=tensor.data_ptr() or _SOMEWHERE.data_ptr(),
        data_len=tensor.numel() * tensor.element_size(),
    )


def _numpy_spec(array: np.ndarray) -> safetensors.TensorSpec:
    return safetensors.TensorSpec(
        dtype=name_of(array.dtype),
        shape=array.shape,
        data_ptr=array.__array_interface__["data"][0],
        data_len=array.nbytes,
    )


def _layout(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> tuple[list[int], bool]:
    """Axes from the slowest to the fastest in memory, and whether memory holds gaps between the elements."""
    order = sorted(range(len(shape)), key=lambda axis: (-abs(strides[axis]), axis))
    expected, gap = item, False
    for axis in reversed(order):
        gap = gap or (shape[axis] > 1 and strides[axis] != expected)
        expected *= shape[axis]
    return order, gap


def decode(message: dict[str, Any], handles: dict[int, Any] | None = None, generators: bool = False) -> Any:
    """The value that :func:`encode` took apart.

    Args:
        message: map with ``tree``, ``numpy`` and ``torch``.
        handles: objects by number; where given, a handle becomes its object (used inside the jail).
        generators: make generators from their seeds, and let streams flow (used inside the jail).

    Raises:
        ProtocolError: the map is malformed.
    """
    try:
        return _Decoder(message, handles, generators).value()
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a malformed value: {type(error).__name__}") from None


class _Decoder:
    def __init__(self, message: dict[str, Any], handles: dict[int, Any] | None, generators: bool) -> None:
        self._tree = message["tree"]
        self._numpy = safetensors.numpy.load(message["numpy"]) if message["numpy"] else {}
        self._torch = safetensors.torch.load(message["torch"]) if message["torch"] else {}
        self._handles, self._generators, self._nodes = handles, generators, 0

    def value(self) -> Any:
        return self._node(self._tree, 0)

    def _node(self, node: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ProtocolError("a value nested too deeply or with too many parts")
        if not isinstance(node, dict):
            if node is None or isinstance(node, (bool, int, float, str)):
                return node
            raise ProtocolError(f"a bare {type(node).__name__}")
        kind = node["k"]
        if kind == "numpy" or kind == "torch":
            return self._array(node, kind)
        if kind in ("tuple", "list"):
            items = [self._node(item, depth + 1) for item in node["items"]]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {self._key(k): self._node(v, depth + 1) for k, v in node["items"]}
        if kind == "dtype":
            return _dtype(str(node["name"]), bool(node["torch"]))
        if kind == "handle":
            return (
                Handle(int(node["number"]), str(node["type"]))
                if self._handles is None
                else self._handles[node["number"]]
            )
        if kind == "generator":
            spec = Generator(int(node["seed"]), str(node["framework"]))
            return _make_generator(spec) if self._generators else spec
        if kind == "stream":
            pieces = tuple(self._node(item, depth + 1) for item in node["items"])
            return _flow(pieces) if self._generators else Stream(pieces)
        if kind == "opaque":
            return Opaque(str(node["type"])[:80])
        raise ProtocolError(f"a node of unknown kind {str(kind)[:20]!r}")

    def _key(self, node: Any) -> Any:
        # Hashes of tuples can be made to collide, and a dictionary of such keys takes hours.
        if not isinstance(node, (str, int, bool, float)):
            raise ProtocolError("a dictionary key of a kind that does not travel")
        return node

    def _array(self, node: dict[str, Any], kind: str) -> Any:
        # Taken out, not looked up: one array named a thousand times, with gaps, would fill our memory.
        array: Any = (self._numpy if kind == "numpy" else self._torch).pop(node["name"])
        if not _plain(array):
            raise ProtocolError("an array of a kind that does not travel")
        if "order" in node:
            array = _laid_out(array, [int(axis) for axis in node["order"]], bool(node["gap"]))
        return array[()] if node.get("scalar") and kind == "numpy" else array


def _dtype(name: str, of_torch: bool) -> Any:
    if len(name) > 20:
        raise ProtocolError("a dtype that is none")
    dtype = vars(torch).get(name) if of_torch else np.dtype(name)
    if not isinstance(dtype, torch.dtype if of_torch else np.dtype):
        raise ProtocolError("a dtype that is none")
    return dtype


def _laid_out(array: Any, order: list[int], gap: bool) -> Any:
    """An array whose memory has its axes in this order, from the slowest to the fastest, perhaps with gaps."""
    if sorted(order) != list(range(array.ndim)):
        raise ProtocolError("an array whose axes contradict its shape")
    of_torch = isinstance(array, torch.Tensor)
    if gap and array.ndim:
        # The same values, one element apart in memory: a non-contiguous view, as the sender's was.
        wide = array.repeat_interleave(2, dim=-1) if of_torch else array.repeat(2, axis=-1)
        array = wide[..., ::2]
    inverse = [order.index(axis) for axis in range(len(order))]
    return array.permute(inverse) if of_torch else array.transpose(inverse)


def _plain(array: Any) -> bool:
    """Whether an array holds real numbers, or truth values that are 0 or 1 in memory too."""
    if isinstance(array, torch.Tensor):
        return not array.is_complex() and (array.dtype != torch.bool or bool((array.view(torch.uint8) <= 1).all()))
    return array.dtype.kind in "biuf" and (array.dtype != bool or bool((array.view(np.uint8) <= 1).all()))


def _flow(pieces: tuple[Any, ...]) -> Iterator[Any]:
    for piece in pieces:
        yield piece
        piece[...] = float("nan")


def _make_generator(spec: Generator) -> Any:
    if spec.framework == "numpy":
        return np.random.default_rng(spec.seed)
    return torch.Generator().manual_seed(spec.seed)
