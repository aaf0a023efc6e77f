"""Reading safetensors files without trust, compared with the library's own reader."""

import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from library.system.tensor_files import (
    MAX_DIMENSIONS,
    NUMBERS,
    TensorFileError,
    read_header,
    read_tensors,
)
from tests.helpers.hostile_files import SIZES, examples, file_bytes, layout_of, spoiled
from tests.helpers.processes import run_code

tensors = st.lists(
    st.tuples(
        st.text(max_size=4),
        st.sampled_from(sorted(SIZES)),
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
    ),
    max_size=5,
    unique_by=lambda tensor: tensor[0],
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "a.safetensors"


def library_reads(path):
    """(names, shapes, dtypes) by the library, or None when it refuses."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError):
        return None


@examples(400)
@given(tensors.flatmap(spoiled))
def test_what_is_accepted_is_what_the_library_accepts(path, content):
    path.write_bytes(content)
    expected = library_reads(path)
    try:
        header = read_header(path)
    except TensorFileError:
        assert expected is None or any(
            len(shape) > MAX_DIMENSIONS or (0 in shape and shape != (0,))
            for shape, _ in expected.values()
        )
        return
    assert {n: (e.shape, e.dtype) for n, e in header.entries.items()} == expected
    names = [name for name, entry in header.entries.items() if entry.dtype in NUMBERS]
    found = read_tensors(path, header, names)
    whole = safetensors.torch.load(content)
    for name in names:
        assert found[name].dtype == whole[name].dtype and found[name].shape == whole[name].shape
        assert torch.equal(
            found[name].view(-1).view(torch.uint8), whole[name].view(-1).view(torch.uint8)
        )


@examples(100)
@given(tensors, st.dictionaries(st.text(max_size=5), st.text(max_size=9)))
def test_whole_files_are_read_with_their_metadata(path, tensors, metadata):
    tensors = [t for t in tensors if 0 not in t[2] and t[0] != "__metadata__"]
    header, size = layout_of(tensors)
    path.write_bytes(file_bytes({"__metadata__": metadata, **header}, b"\0" * size))
    found = read_header(path)
    assert found.metadata == metadata and found.entries.keys() == {t[0] for t in tensors}


@pytest.mark.parametrize("shape", [(5, 0), (0, 5), (2**40, 0), (1,) * 9])
def test_shapes_that_say_nothing_about_the_size_are_refused(path, shape):
    header, size = layout_of([("a", "F32", shape)])
    path.write_bytes(file_bytes(header, b"\0" * size))
    with pytest.raises(TensorFileError, match="shapes without numbers"):
        read_header(path)


def test_a_file_that_shrinks_between_header_and_data_is_an_error(path):
    header, size = layout_of([("a", "F32", (50,))])
    path.write_bytes(file_bytes(header, b"\0" * size))
    found = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TensorFileError, match="cut"):
        read_tensors(path, found, ["a"])
    path.unlink()
    with pytest.raises(TensorFileError, match="cannot be read any more"):
        read_tensors(path, found, ["a"])


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\0b", "."])
def test_what_is_no_file_is_refused(path, name):
    with pytest.raises(TensorFileError, match="no such file|a folder"):
        read_header(path.parent / name)


def peak_of(code: str) -> int:
    """By how many bytes a process grows that runs this; its data may grow by 1 GiB at most."""
    program = f"""
import resource
from networks.codec import read_adapter
from library.errors import UserError
from library.system.tensor_files import TensorFileError, read_header
def of_process(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
limit = of_process("VmData") + 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = of_process("VmRSS")
try:
    {code}
    raise SystemExit("accepted")
except (UserError, TensorFileError):
    print(of_process("VmHWM") - before)
"""
    run = run_code(program)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def huge_header(path):
    """As many tensors as its 30 MB of header can name."""
    entry = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    entries = b"".join(entry % number for number in range(500_000))
    path.write_bytes(file_bytes(b"{" + entries[:-1] + b"}", b""))


def nested_header(path):
    path.write_bytes(file_bytes(b'{"__metadata__":' + b"[]," * 10**7, b""))


def huge_checkpoint(path):
    """8 GiB of a model, given as an adapter; sparse on the disk."""
    header, size = layout_of([("net.x_embedder.proj.1.weight", "F32", (2**15, 2**16))])
    path.write_bytes(file_bytes(header, b""))
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size + size)


def long_header(path):
    """8 GiB of which all is said to be header."""
    path.write_bytes(file_bytes(b"{", b"", 2**33 - 8))
    with open(path, "rb+") as file:
        file.truncate(2**33)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("make", [huge_header, nested_header, huge_checkpoint, long_header])
def test_a_file_that_is_refused_costs_no_memory_beyond_its_header(path, make):
    make(path)
    header = min(32 * 2**20, path.stat().st_size)
    assert peak_of(f"read_adapter({str(path)!r})") < 8 * header + 2**26
    path.unlink()
