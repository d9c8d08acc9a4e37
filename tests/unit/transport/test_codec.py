"""What travels in frames: arrays with their dtype and shape, nothing that runs code."""

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from snooze.common.errors import InvalidRequest
from snooze.common.transport.codec import (
    ENCODER,
    MAX_ARRAY_BYTES,
    MalformedMessage,
    decode,
    decoder_for,
    pack_array,
    unpack_array,
)


class Report(msgspec.Struct, tag=True, eq=False):
    samples: npt.NDArray[np.float64]
    anything: np.ndarray[Any, Any] | None = None
    load: float = 0.0
    count: int = 0


@pytest.mark.parametrize("name", ["f8", "f4", "i8", "i4", "i2", "u8", "u4", "u2", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 4), (2, 0, 3), (1, 2, 3, 2)])
def test_an_array_comes_back_as_it_was(name: str, shape: tuple[int, ...]) -> None:
    array: npt.NDArray[Any] = np.arange(math.prod(shape)).reshape(shape).astype(name)
    back = unpack_array(pack_array(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.flags.aligned
    assert not back.flags.writeable


def test_layout_and_byte_order_do_not_matter() -> None:
    array = np.arange(12, dtype=">f8").reshape(3, 4).T[::2]
    assert np.array_equal(unpack_array(pack_array(array)), array)


def test_a_struct_carries_arrays_and_numpy_scalars() -> None:
    report = Report(np.array([np.nan, 1.0]), np.eye(2, dtype=np.float32), np.float64(0.5))
    report.count = np.int64(7)  # type: ignore[assignment]
    back = decode(Report, ENCODER.encode(report))
    assert np.array_equal(back.samples, report.samples, equal_nan=True)
    assert back.anything.dtype == np.float32
    assert (back.load, back.count) == (0.5, 7)


def test_the_declared_dtype_is_held_to() -> None:
    with pytest.raises(InvalidRequest, match=r"Expected float64, got int32 - at `\$.samples`"):
        decode(Report, ENCODER.encode({"type": "Report", "samples": np.arange(3, dtype=np.int32)}))
    with pytest.raises(InvalidRequest, match="Expected an array, got list"):
        decode(Report, ENCODER.encode({"type": "Report", "samples": [1.0]}))


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "c16", "M8[s]", "V4", "f2"])
def test_other_dtypes_do_not_travel(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="do not travel"):
        pack_array(np.zeros(2, dtype=dtype))


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="too large"):
        pack_array(np.zeros((1, 1, 1, 1, 1)))
    with pytest.raises(InvalidRequest, match="too large"):
        pack_array(np.zeros(MAX_ARRAY_BYTES + 1, dtype=np.uint8))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00",
        b"\xff\x00",
        b"\x00\x01",
        b"\x00\x01\x01\x00\x00\x00",
        b"\x00\x01\x01\x00\x00\x00" + b"\0" * 9,
        b"\x00\x04" + b"\xff\xff\xff\xff" * 4,
        b"\x00\x05" + b"\0" * 20,
        b"\x07\x01\x01\x00\x00\x00\x02",
    ],
)
def test_nonsense_is_no_array(payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        unpack_array(payload)
    with pytest.raises(InvalidRequest):
        decode(Report, ENCODER.encode(["Report", msgspec.msgpack.Ext(1, payload)]))
    with pytest.raises(InvalidRequest):
        decode(
            Report, ENCODER.encode({"type": "Report", "samples": msgspec.msgpack.Ext(1, payload)})
        )


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", MalformedMessage),
        (b"\xc1", MalformedMessage),
        (b"\xa2\xff\xff", InvalidRequest),
        (b"\xdd\xff\xff\xff\xff", InvalidRequest),
        (b"\x80", InvalidRequest),
        (b"\x82\xa4type\xa6Report\xa7samples\xc7\x00\x63", InvalidRequest),
        (b"\x81\xa4type\xa2\xff\xff", MalformedMessage),
        (b"\x83\xa4type\xa6Report\xa1x" + b"\x91" * 100_000, MalformedMessage),
    ],
)
def test_bad_bytes(payload: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(Report, payload)


def test_a_union_that_cannot_be_told_apart_is_found_when_the_service_is_made() -> None:
    class One(msgspec.Struct):
        x: int

    class Two(msgspec.Struct):
        x: int

    with pytest.raises(TypeError):
        decoder_for(One | Two)
