"""What crosses the border arrives as it was; what is malformed is a ProtocolError, and never anything else."""

import contextlib
import json
import math
import socket
import struct
import threading

import msgpack
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autograder.sandbox import protocol
from autograder.sandbox.protocol import (
    Closed,
    Generator,
    Handle,
    Opaque,
    ProtocolError,
    Stream,
    builtin_bases,
    decode,
    encode,
    receive,
    send,
)

calm = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])

NUMPY = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
TORCH = ["bool", "int8", "int16", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64"]


def travel(value):
    """The value after a trip through the very bytes that a socket carries."""
    packed = msgpack.packb(encode(value), use_bin_type=True)
    return decode(msgpack.unpackb(packed, raw=False, strict_map_key=True))


def same(one, other):
    """Equal in kind, type, shape, dtype and every value, NaN and the sign of zero included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if not one.numel():
            return True
        return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return one == other


numpy_arrays = st.sampled_from(NUMPY).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
tensors = st.sampled_from(TORCH).flatmap(
    lambda dtype: st.tuples(
        st.just(getattr(torch, dtype)), arrays.arrays("int8", arrays.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ).map(lambda pair: torch.from_numpy(np.asarray(pair[1])).to(pair[0]))
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
    | st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.dtype("float32"), torch.bfloat16])
    | st.builds(Handle, st.integers(0, 9), st.just("Layer"))
    | st.builds(Generator, st.integers(0, 2**32), st.sampled_from(["numpy", "torch"]))
)
values = st.recursive(
    scalars | numpy_arrays | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


# Values


@calm
@given(values)
@example((math.nan, math.inf, -0.0, 2**63 - 1, -(2**63)))
@example({"deep": [({1: np.zeros((0, 3), "float16")},)]})
def test_every_value_comes_back_as_it_went(value):
    assert same(travel(value), value)


@pytest.mark.parametrize("dtype", NUMPY)
def test_every_numpy_dtype_and_the_extremes_of_it_travel(dtype):
    kind = np.dtype(dtype)
    extremes = {
        "b": lambda: [False, True],
        "f": lambda: [np.finfo(kind).max, np.finfo(kind).tiny, np.nan, -np.inf, -0.0],
    }
    array = np.array(extremes.get(kind.kind, lambda: [np.iinfo(kind).min, np.iinfo(kind).max])(), dtype=kind)
    assert same(travel(array), array)
    assert same(travel(array[0]), array[0]) or dtype == "float64"  # a float64 is a Python float: next test


@pytest.mark.parametrize("dtype", TORCH)
def test_every_torch_dtype_travels(dtype):
    tensor = torch.tensor([0, 1, 3]).to(getattr(torch, dtype))
    assert same(travel(tensor), tensor)
    assert same(travel(tensor[1]), tensor[1])


def test_numpy_float64_is_a_python_float_and_travels_as_one():
    assert same(travel(np.float64(0.1)), 0.1)


@calm
@given(st.permutations(range(3)), st.integers(1, 3), st.booleans(), st.booleans())
def test_values_do_not_depend_on_how_they_lie_in_memory(order, step, backwards, broadcast):
    base = np.arange(6 * 8 * 9, dtype=np.float32).reshape(6, 8, 9)
    array = base.transpose(order)[:, ::step]
    array = array[..., ::-1] if backwards else array
    array = np.broadcast_to(array[:1], array.shape) if broadcast else array
    assert np.array_equal(travel(array), array)
    tensor = torch.from_numpy(base).permute(*order)[:, ::step]
    tensor = tensor[:1].expand(tensor.shape) if broadcast else tensor
    assert torch.equal(travel(tensor), tensor)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_view_arrives_as_a_view_of_the_same_layout(kind):
    base = np.arange(24.0).reshape(2, 3, 4)
    plain, turned, gaps = base, base.transpose(2, 0, 1), base[:, :, ::2]
    if kind == "torch":
        plain, turned, gaps = (torch.from_numpy(base), *(torch.from_numpy(base).permute(2, 0, 1), gaps))
        gaps = torch.from_numpy(base)[:, :, ::2]
        assert travel(plain).is_contiguous()
        assert travel(turned).stride() == turned.stride()
        assert not travel(gaps).is_contiguous()
    else:
        assert travel(plain).flags.c_contiguous
        assert travel(turned).strides == turned.strides
        assert not travel(gaps).flags.c_contiguous


def test_what_arrives_can_be_written_to_and_is_nobody_elses():
    array, tensor = np.zeros(3), torch.zeros(3)
    one, other = travel((array, tensor))
    one += 1
    other += 1
    assert (array.sum(), tensor.sum().item(), one.sum(), other.sum().item()) == (0, 0, 3, 3)


def test_bytes_in_the_other_order_arrive_with_the_same_values():
    assert np.array_equal(travel(np.array([1.5, -2.0], dtype=">f4")), np.array([1.5, -2.0]))


def test_a_tensor_that_needs_a_gradient_arrives_without():
    assert not travel(torch.nn.Parameter(torch.ones(2))).requires_grad


@pytest.mark.parametrize(
    "value",
    [2**63, -(2**63) - 1, 1 + 2j, np.ones(2, complex), np.array(["text"]), np.array([object()]), np.longdouble(1),
     np.array(["2026-01-01"], "datetime64[D]"), torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(),
     {1, 2}, b"bytes", object(), len, torch.nn.Linear(1, 1)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_does_not_travel_becomes_the_name_of_its_type(value):
    came = travel([value, 7])
    assert isinstance(came[0], Opaque)
    assert came[1] == 7


def test_long_text_is_cut_and_a_value_without_end_is_refused():
    assert len(travel("x" * 10**6)) == protocol.MAX_TEXT
    endless = []
    endless.append(endless)
    with pytest.raises(ProtocolError):
        encode(endless)
    with pytest.raises(ProtocolError):
        encode([0] * (protocol.MAX_NODES + 1))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_generators_are_made_anew_from_their_seed(library):
    message = encode(Generator(5, library))
    one, other = (decode(message, handles={}, generators=True) for _ in range(2))
    if library == "numpy":
        assert one.random() == other.random() == np.random.default_rng(5).random()
    else:
        wanted = torch.rand(3, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.rand(3, generator=one), wanted)
        assert torch.equal(torch.rand(3, generator=other), wanted)


def test_a_stream_flows_once_and_overwrites_what_it_gave():
    pieces = (torch.arange(3.0), np.arange(2.0), torch.empty(0))
    stream = decode(encode(Stream(pieces)), handles={}, generators=True)
    for sent in pieces:
        assert same(next(stream), sent)
    assert not list(stream), "it is over"
    kept = list(decode(encode(Stream(pieces)), handles={}, generators=True))
    assert all(np.isnan(np.asarray(piece)).all() for piece in kept)
    assert same(decode(encode(Stream(pieces))).pieces, pieces), "outside it is what was sent, and does not flow"


def test_a_handle_becomes_its_object_only_where_objects_are_given():
    thing = object()
    message = encode((Handle(3, "Layer"),))
    assert decode(message) == (Handle(3, "Layer"),)
    assert decode(message, handles={3: thing})[0] is thing
    with pytest.raises(ProtocolError):
        decode(message, handles={})


# Malformed values


def blob(dtype, shape, data, name="0"):
    """A safetensors file of our own making."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def message(tree, numpy=b"", torch=b""):
    return {"tree": tree, "numpy": numpy, "torch": torch}


def node(kind="numpy", order=(0,), gap=False, name="0"):
    return {"k": kind, "name": name, "order": list(order), "gap": gap}


TWO = safetensors.numpy.save({"0": np.arange(2.0)})
MALFORMED = {
    "nothing": {},
    "no tree": {"numpy": b"", "torch": b""},
    "no arrays": {"tree": 1},
    "no map": [1, 2],
    "none": None,
    "bytes in the tree": message(b"x"),
    "an extension type": message(msgpack.ExtType(4, b"x")),
    "a timestamp": message(msgpack.Timestamp(1)),
    "a bare list": message([1]),
    "a node without a kind": message({}),
    "an unknown kind": message({"k": "pickle"}),
    "a kind that is no text": message({"k": [1]}),
    "items that are none": message({"k": "list", "items": 3}),
    "a dictionary of triples": message({"k": "dict", "items": [[1, 2, 3]]}),
    "an unhashable key": message({"k": "dict", "items": [[{"k": "list", "items": []}, 1]]}),
    "an order that is none": message(node(order=(1,)), TWO),
    "an order too long": message(node(order=(0, 0)), TWO),
    "an order too short": message(node(order=()), TWO),
    "a negative order": message(node(order=(-1,)), TWO),
    "an order of text": message(node(order=("x",)), TWO),
    "an infinite order": message(node(order=(math.inf,)), TWO),
    "an order without a word on gaps": message({"k": "numpy", "name": "0", "order": [0]}, TWO),
    "an array that is not there": message(node(name="1"), TWO),
    "an array used twice": message({"k": "list", "items": [node(), node()]}, TWO),
    "numpy for torch": message(node("torch"), TWO),
    "safetensors that are none": message(node(), b"not safetensors"),
    "safetensors of a string": message(node()) | {"numpy": "text"},
    "safetensors cut short": message(node(), TWO[:-1]),
    "a header too long": message(node(), struct.pack("<Q", 2**62) + TWO[8:]),
    "a size that overflows": message(node(order=(0, 1)), blob("F64", [2**62, 4], b"")),
    "complex numbers": message(node(), blob("C64", [1], bytes(8))),
    "complex tensors": message(node("torch"), torch=blob("C64", [1], bytes(8))),
    "a truth value of 2": message(node(), blob("BOOL", [1], b"\2")),
    "a truth value of 2 in torch": message(node("torch"), torch=blob("BOOL", [1], b"\2")),
    "a dtype that is a function": message({"k": "dtype", "name": "load", "torch": True}),
    "a dtype that is a module": message({"k": "dtype", "name": "nn", "torch": True}),
    "a dtype that is none": message({"k": "dtype", "name": "no such", "torch": False}),
    "a handle without a number": message({"k": "handle", "number": "x", "type": ""}),
    "a generator without a seed": message({"k": "generator", "framework": "numpy"}),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_value_is_a_protocol_error(case):
    with pytest.raises(ProtocolError):
        decode(MALFORMED[case])


def nested(kind, depth):
    tree = 1
    for _ in range(depth):
        tree = {"k": kind, "items": [[1, tree] if kind == "dict" else tree]}
    return message(tree)


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_deep_nesting_is_refused(kind):
    decode(nested(kind, protocol.MAX_DEPTH))
    with pytest.raises(ProtocolError):
        decode(nested(kind, protocol.MAX_DEPTH + 1))
    with pytest.raises(ProtocolError):
        decode(nested(kind, 100_000))


def test_too_many_parts_are_refused():
    with pytest.raises(ProtocolError):
        decode(message({"k": "list", "items": [1] * (protocol.MAX_NODES + 1)}))


GOOD = msgpack.packb(
    encode(((np.arange(6.0).reshape(2, 3).T, torch.ones(2, 2, dtype=torch.bfloat16)), {"a": np.int8(3), "b": True}))
)


@calm
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_a_frame_with_wrong_bytes_is_a_value_or_a_protocol_error(changes, shorten):
    damaged = bytearray(GOOD)
    for place, byte in changes:
        damaged[place] = byte
    if shorten:
        del damaged[changes[0][0] :]
    with socket_pair() as (ours, theirs), contextlib.suppress(ProtocolError):
        theirs.sendall(struct.pack("<Q", len(damaged)) + damaged)
        encode(decode(receive(ours)))  # whatever it is, it is a value of the protocol


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["k", "items", "name", "order", "gap", "torch", "numpy", "number", "seed", "framework", "type"]
    ), inner | st.sampled_from(["list", "dict", "numpy", "torch", "dtype", "handle", "generator", "0"]), max_size=6),
    max_leaves=10,
)  # fmt: skip


@calm
@given(junk)
def test_nonsense_of_the_right_form_is_a_value_or_a_protocol_error(tree):
    with contextlib.suppress(ProtocolError):
        came = decode({"tree": tree, "numpy": TWO, "torch": TWO})
        assert same(came, came) or isinstance(came, Opaque)


# Frames


@contextlib.contextmanager
def socket_pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        yield ours, theirs


def frames(data, limit=protocol.MAX_FRAME):
    """Receive once from a peer that sends these bytes and hangs up."""
    with socket_pair() as (ours, theirs):
        sender = threading.Thread(target=lambda: (theirs.sendall(data), theirs.shutdown(socket.SHUT_WR)))
        sender.start()
        try:
            return receive(ours, limit)
        finally:
            ours.close()  # a peer that still writes is not waited for
            sender.join(20)
            assert not sender.is_alive()


def framed(payload):
    return struct.pack("<Q", len(payload)) + payload


@pytest.mark.parametrize("data", [b"", b"\0", framed(b"12345678")[:-1], struct.pack("<Q", 2**20)])
def test_a_frame_that_ends_early_is_a_closed_connection(data):
    with pytest.raises(Closed):
        frames(data)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", msgpack.packb([1]), msgpack.packb(7), msgpack.packb({1: 2}), msgpack.packb({"a": 1}) + b"\0",
     b"\x91" * 5000, b"\x81\xa1a" * 5000, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
     b"\x81\xa2\xff\xfe\x01"],
    ids=["empty", "reserved", "list", "number", "key", "rest", "deep", "deep map", "map", "list32", "bin", "utf-8"],
)  # fmt: skip
def test_a_frame_that_is_no_map_is_a_protocol_error(payload):
    with pytest.raises(ProtocolError) as raised:
        frames(framed(payload))
    assert raised.type is ProtocolError


@pytest.mark.parametrize("length", [protocol.MAX_FRAME + 1, 2**63, 2**64 - 1])
def test_a_length_over_the_limit_is_refused_before_anything_is_read(length):
    with pytest.raises(ProtocolError, match="more than"):
        frames(struct.pack("<Q", length))


@calm
@given(st.binary(max_size=200))
def test_random_bytes_are_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        frames(data + b"\xff" * 8)


def test_a_frame_in_small_pieces_and_two_frames_in_one_piece_are_read_alike():
    with socket_pair() as (ours, theirs):
        first, second = framed(msgpack.packb({"a": 1})), framed(msgpack.packb({"b": [2]}))
        for byte in first[:-1]:
            theirs.sendall(bytes([byte]))
        theirs.sendall(first[-1:] + second)
        assert (receive(ours), receive(ours)) == ({"a": 1}, {"b": [2]})


def test_a_large_value_crosses_a_socket():
    value = np.random.default_rng(0).normal(size=(300, 1000))
    with socket_pair() as (ours, theirs):
        sender = threading.Thread(target=send, args=(theirs, encode(value)))
        sender.start()
        assert np.array_equal(decode(receive(ours)), value)
        sender.join(20)


@pytest.mark.parametrize(
    ("claimed", "believed"),
    [
        (["ZeroDivisionError", "ArithmeticError", "Exception", "BaseException", "object"],
         ["ZeroDivisionError", "ArithmeticError", "Exception", "BaseException"]),
        (["print", "no such", 3, None, ["ValueError"]], []),
        ("ValueError", []),
        (None, []),
    ],
)  # fmt: skip
def test_only_names_of_builtin_exceptions_are_believed(claimed, believed):
    assert builtin_bases({"bases": claimed}) == believed


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3)])
def test_arrays_are_written_as_safetensors_writes_them(dtype, shape):
    tensors = {"0": (3 * torch.rand(shape)).to(dtype), "1": torch.ones(2)}
    assert protocol._saved(tensors, protocol._torch_spec) == safetensors.torch.save(tensors)
    if dtype != torch.bfloat16:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        assert protocol._saved(arrays, protocol._numpy_spec) == safetensors.numpy.save(arrays)
