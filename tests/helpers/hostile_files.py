"""Safetensors files as an enemy, or a bad disk, would make them; drawn by hypothesis."""

import json
import os
import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
ODD_NUMBERS = [
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    1.5,
    True,
    None,
]
ODD_NUMBERS += ["1", [], {}]

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # more draws other examples, each run anew


def examples(count):
    """The same examples on every machine and in every run, unless FUZZ_TIMES asks for more."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def file_bytes(header, data, length=None):
    """A file with this header (an object, or its bytes), telling any length of it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def layout_of(tensors):
    """The header of (name, dtype, shape) in order, and how many bytes of data it asks for."""
    header, end = {}, 0
    for name, dtype, shape in tensors:
        size = SIZES[dtype]
        for edge in shape:
            size *= edge
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return header, end


@st.composite
def spoiled(draw, tensors):
    """A file of `tensors` with one to three things wrong, or none, as bytes."""
    header, size = layout_of(tensors)
    length, raw = None, None
    pattern = draw(
        st.sampled_from([b"\0", b"\x01\x02\x03\x3f", b"\xff", b"\0\0\xc0\x7f", b"\0\x3c"])
    )
    data = (pattern * (size // len(pattern) + 1))[:size]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["entry", "metadata", "length", "data", "flip", "text"]))
        if kind == "entry" and header:
            spoil_entry(draw, header)
        elif kind == "metadata":
            header["__metadata__"] = draw(ODD_METADATA)
        elif kind == "length":
            length = draw(st.sampled_from([0, 1, 7, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1]))
        elif kind == "data":
            data = draw(st.sampled_from([data[:-1], data + b"\0", b"", data * 2]))
        elif kind == "text":
            raw = draw(ODD_TEXTS) if draw(st.booleans()) else repeated_name(header)
    found = bytearray(file_bytes(raw if raw is not None else header, data, length))
    for place in draw(st.lists(st.integers(0, max(0, len(found) - 1)), max_size=2)):
        found[place : place + 1] = draw(st.sampled_from([b"", b"\0", b"{", b'"', b"9", b"\xff"]))
    return bytes(found)


def spoil_entry(draw, header):
    name = draw(st.sampled_from(sorted(header)))
    if not isinstance(header[name], dict) or "dtype" not in header[name]:
        return
    entry = header[name]
    part = draw(st.sampled_from(["dtype", "shape", "data_offsets", "whole", "extra"]))
    if part == "dtype":
        entry["dtype"] = draw(st.sampled_from([*SIZES, "F4", "C64", "", "f32", None, 5]))
    elif part == "shape":
        entry["shape"] = draw(st.lists(st.sampled_from(ODD_NUMBERS), max_size=12) | ODD_VALUES)
    elif part == "data_offsets":
        entry["data_offsets"] = draw(
            st.lists(st.sampled_from(ODD_NUMBERS), max_size=3) | ODD_VALUES
        )
    elif part == "whole":
        header[name] = draw(ODD_VALUES)
    else:
        entry["more"] = draw(ODD_VALUES)


def repeated_name(header):
    """The same names twice, which no JSON writer makes."""
    text = json.dumps(header)
    return (text[:-1] + ", " + text[1:] if header else text).encode()


ODD_VALUES = st.sampled_from([None, True, 0, -1, 1e400, "", "x", [], {}, [[]], {"a": 1}])
ODD_METADATA = ODD_VALUES | st.dictionaries(
    st.text(max_size=5), st.text(max_size=20) | ODD_VALUES, max_size=3
)
ODD_TEXTS = st.sampled_from([
    b"", b"{", b"{}", b"[]", b"null", b"{}   ", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0",
    b'{"a":' * 2000, b"[" * 100_000, b'{"__metadata__":' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,4]}}',
    b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
]) | st.binary(max_size=40)  # fmt: skip
