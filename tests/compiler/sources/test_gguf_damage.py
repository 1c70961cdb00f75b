"""Damaged and forged GGUF files: one clear error, at once, without large allocations."""

from __future__ import annotations

import resource
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola.compiler.sources import open_source
from cupola.compiler.sources.gguf_header import read_header
from cupola.runtime.errors import InputError, SourceError, UnsupportedError

HEADER = 9000
"""About where the tiny file's header ends."""
ASCII = [bytes([value]) for value in range(128)]
HUGE = [1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def forged(tmp_path, tensors=b"", num_tensors=1, metadata=b"", num_fields=0, data=b"\0" * 4096, version=3):
    path = tmp_path / "forged.gguf"
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + metadata + tensors
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(name=b"a", dims=(32,), kind=0, offset=0, num_dims=None) -> bytes:
    return (
        text(name) + struct.pack("<I", len(dims) if num_dims is None else num_dims) + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)
    )


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def refuse(path, message, error=SourceError):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(error, match=message) as caught:
        read_header(path)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "more than 100 MB"
    line = str(caught.value)
    assert "\n" not in line and path.name in line
    with pytest.raises(error):
        open_source(path)


def test_a_good_forgery_reads(tmp_path):
    header = read_header(forged(tmp_path, entry() + entry(b"b", (32, 4), 0, 128), 2))
    assert [(info.name, info.shape, info.num_bytes) for info in header.tensors] == [("a", (32,), 128), ("b", (4, 32), 512)]


@pytest.mark.parametrize("count", [*HUGE, (1 << 20) + 1])
def test_overflowing_counts(tmp_path, count):
    refuse(forged(tmp_path, num_tensors=count), "tensor count")
    refuse(forged(tmp_path, num_fields=count), "metadata count")
    refuse(forged(tmp_path, num_tensors=0, metadata=text(b"key", count), num_fields=1), r"key of metadata field 0 \(length\)")
    refuse(forged(tmp_path, num_tensors=0, metadata=field(b"key", 8, struct.pack("<Q", count)), num_fields=1), r"key")
    for kind in (0, 8, 12):
        array = field(b"key", 9, struct.pack("<IQ", kind, count))
        refuse(forged(tmp_path, num_tensors=0, metadata=array, num_fields=1), r"key.*(count|ends)")
    refuse(forged(tmp_path, text(b"a", count)), "name of tensor 0")


@pytest.mark.parametrize("size", HUGE)
def test_overflowing_dims_and_offsets(tmp_path, size):
    refuse(forged(tmp_path, entry(dims=(size,))), "a: reaches past the end|a: rows of")
    refuse(forged(tmp_path, entry(dims=(32, size, size, size))), "a: reaches past the end")
    refuse(forged(tmp_path, entry(offset=size)), r"a.*(past the end|multiple of 32)")
    refuse(forged(tmp_path, entry(num_dims=max(5, size & 0xFFFFFFFF))), r"a \(dimensions\)")


def test_bad_tensors(tmp_path):
    refuse(forged(tmp_path, entry(dims=(32, 0))), "a: has the empty shape")
    refuse(forged(tmp_path, entry(dims=())), "a: has the empty shape")
    refuse(forged(tmp_path, entry(dims=(33,), kind=2)), "a: rows of 33 values do not fill blocks of 32")
    refuse(forged(tmp_path, entry(offset=8)), "a .offset.: is not a multiple of 32")
    refuse(forged(tmp_path, entry() + entry(b"b"), 2), "b: lies over another tensor|a: lies over another tensor")
    refuse(forged(tmp_path, entry() + entry(b"b", offset=96), 2), "b: lies over another tensor")
    refuse(forged(tmp_path, entry() + entry(offset=128), 2), "tensor table: a name appears twice")
    refuse(forged(tmp_path, entry(kind=99)), "a: has the unknown type 99", UnsupportedError)
    refuse(forged(tmp_path, entry(kind=4)), "a: has the unknown type 4", UnsupportedError)
    refuse(forged(tmp_path, entry(name=b"\xff\xfe")), "name of tensor 0: is not UTF-8")
    refuse(forged(tmp_path, entry(name=b"a\nb")), r"name of tensor 0: 'a\\nb' is not printable")


@pytest.mark.parametrize("alignment", [0, 3, 48, 1 << 21, (1 << 32) - 1])
def test_bad_alignment(tmp_path, alignment):
    metadata = field(b"general.alignment", 4, struct.pack("<I", alignment))
    refuse(forged(tmp_path, entry(), metadata=metadata, num_fields=1), r"general\.alignment: is \d+, not a power of two")
    metadata = field(b"general.alignment", 8, text(b"32"))
    refuse(forged(tmp_path, entry(), metadata=metadata, num_fields=1), r"general\.alignment: is '32'")


def test_bad_metadata(tmp_path):
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(1000))
    refuse(forged(tmp_path, num_tensors=0, metadata=field(b"key", 9, nested), num_fields=1), "key: is an array of arrays")
    refuse(forged(tmp_path, num_tensors=0, metadata=field(b"key", 77, b""), num_fields=1), "key: has the unknown type 77")
    refuse(forged(tmp_path, num_tensors=0, metadata=field(b"k", 0, b"1") * 2, num_fields=2), "k: appears twice")
    refuse(forged(tmp_path, num_tensors=0, metadata=field(b"k", 8, text(b"\xff")), num_fields=1), "k: is not UTF-8")


def test_bad_beginnings(tmp_path):
    path = tmp_path / "bad.gguf"
    for content, message in [(b"", "is empty"), (b"GG", "magic"), (b"PK\3\4" + bytes(100), "magic: is not GGUF"), (b"GGUF", "version")]:
        path.write_bytes(content)
        refuse(path, message)
    refuse(forged(tmp_path, version=1), "version: is 1", UnsupportedError)
    refuse(forged(tmp_path, version=4), "version: is 4", UnsupportedError)
    refuse(forged(tmp_path, version=3 << 24), "version: the file is big-endian", UnsupportedError)


def test_cut_off_anywhere(tiny_gguf, tmp_path):
    data, path = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
    for length in [*range(200), *range(200, len(data), len(data) // 50), len(data) - 33, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(SourceError, match=r"cut\.gguf"):
            open_source(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, HEADER), st.binary(min_size=1, max_size=3) | st.sampled_from(ASCII)), min_size=1, max_size=3),
    st.none() | st.none() | st.integers(0, HEADER),
)
def test_random_damage_never_escapes(tiny_gguf, tmp_path, changes, length):
    data, path = bytearray(tiny_gguf.read_bytes()), tmp_path / "fuzzed.gguf"
    for where, value in changes:
        data[where : where + len(value)] = value
    path.write_bytes(data[:length])
    try:
        source = open_source(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for tensor in source.tensors.values():
        assert tensor.load().shape == tensor.shape
