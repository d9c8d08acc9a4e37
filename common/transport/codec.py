"""MessagePack for typed messages, with numpy arrays inside.

An array travels as extension type 1::

    dtype code (1 byte) | number of axes (1 byte) | each length (4 bytes, little-endian) | elements

Elements are little-endian, in C order. Only the types in ``_DTYPES`` travel: never objects, so
nothing that is received can run code. A struct declares such a field as ``NDArray[np.float64]``
(the dtype is then checked on receipt) or ``np.ndarray`` (any of the types), and should be declared
``eq=False``, because arrays do not compare to one truth value.

What is received is read-only and aligned: a view on the frame where that is aligned, else a copy.
"""

import functools
import math
import struct
from typing import Any, TypeGuard, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

from snooze.common.errors import InvalidRequest

ARRAY_EXT_CODE = 1
MAX_ARRAY_BYTES = 16 * 1024 * 1024
MAX_ARRAY_AXES = 4

# The codes are the wire contract: add at the end, never renumber.
_DTYPE_NAMES = ("<f8", "<f4", "<i8", "<i4", "<u8", "<u4", "|u1", "|b1", "<i2", "<u2")


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(name)


_DTYPES = [_dtype(name) for name in _DTYPE_NAMES]
_CODES: dict[np.dtype[Any], int] = {dtype: code for code, dtype in enumerate(_DTYPES)}
_PREFIX = struct.Struct("<BB")


class MalformedMessage(Exception):
    """The bytes are not MessagePack at all: whoever sent them is not to be trusted further."""


def pack_array(array: npt.NDArray[Any]) -> bytes:
    """The extension payload of ``array``.

    Raises:
        InvalidRequest: its dtype, its number of axes or its size may not travel.
    """
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise InvalidRequest(f"arrays of dtype {array.dtype} do not travel")
    if array.ndim > MAX_ARRAY_AXES or array.nbytes > MAX_ARRAY_BYTES:
        raise InvalidRequest(
            f"an array of shape {array.shape} ({array.nbytes} bytes) is too large to travel"
        )
    lengths = struct.pack(f"<{array.ndim}I", *array.shape)
    return b"".join(
        (
            _PREFIX.pack(code, array.ndim),
            lengths,
            array.astype(_DTYPES[code], copy=False).tobytes(),
        )
    )


def unpack_array(payload: bytes | memoryview) -> npt.NDArray[Any]:
    """The array that ``pack_array`` described; read-only, aligned.

    Raises:
        InvalidRequest: this does not describe an array.
    """
    if len(payload) < _PREFIX.size:
        raise InvalidRequest("array without a description")
    code: int
    axes: int
    code, axes = _PREFIX.unpack_from(payload)
    start = _PREFIX.size + 4 * axes
    if code >= len(_DTYPES) or axes > MAX_ARRAY_AXES or len(payload) < start:
        raise InvalidRequest("array with a bad description")
    shape: tuple[int, ...] = struct.unpack_from(f"<{axes}I", payload, _PREFIX.size)
    dtype = _DTYPES[code]
    expected = math.prod(shape) * dtype.itemsize
    if expected > MAX_ARRAY_BYTES or len(payload) - start != expected:
        raise InvalidRequest(
            f"array of shape {shape} and dtype {dtype} in {len(payload) - start} bytes"
        )
    if dtype.kind == "b" and bytes(payload[start:]).strip(b"\x00\x01"):
        raise InvalidRequest("array of booleans that are neither true nor false")
    flat: npt.NDArray[Any] = np.frombuffer(payload, dtype=dtype, offset=start)
    if not flat.flags.aligned:
        flat = flat.copy()
    flat.flags.writeable = False
    return flat.reshape(shape)


def _is_array(value: object) -> TypeGuard[npt.NDArray[Any]]:
    return isinstance(value, np.ndarray)


def _is_scalar(value: object) -> "TypeGuard[np.generic[Any]]":
    return isinstance(value, np.generic)


def encode_hook(value: object) -> object:
    """What msgspec asks for a value it does not know: numpy arrays and scalars."""
    if _is_array(value):
        return msgspec.msgpack.Ext(ARRAY_EXT_CODE, pack_array(value))
    if _is_scalar(value):
        scalar: object = value.item()
        if isinstance(scalar, bool | int | float):
            return scalar
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def ext_hook(code: int, data: memoryview) -> object:
    """What msgspec asks for an extension value."""
    if code != ARRAY_EXT_CODE:
        raise msgspec.ValidationError(f"unknown extension type {code}")
    try:
        return unpack_array(data)
    except InvalidRequest as error:
        raise msgspec.ValidationError(error.message) from None


def decode_hook(kind: Any, value: object) -> object:
    """Hold a field typed ``NDArray[dtype]`` to its dtype; msgspec adds the path to the error."""
    if not _is_array(value):
        raise ValueError(f"Expected an array, got {type(value).__name__}")
    wanted = get_args(get_args(kind)[1]) if get_origin(kind) is np.ndarray else ()
    dtype: np.dtype[Any] = value.dtype
    if wanted and isinstance(wanted[0], type) and not issubclass(dtype.type, wanted[0]):
        raise ValueError(f"Expected {wanted[0].__name__}, got {dtype}")
    return value


ENCODER = msgspec.msgpack.Encoder(enc_hook=encode_hook)


@functools.lru_cache(maxsize=1024)
def decoder_for(kind: Any) -> "msgspec.msgpack.Decoder[Any]":
    """The decoder of one type or union of tagged structs; made once.

    Raises:
        TypeError: msgspec cannot tell the members of the union apart.
    """
    return msgspec.msgpack.Decoder(kind, ext_hook=ext_hook, dec_hook=decode_hook)


def decode(kind: Any, payload: bytes) -> Any:
    """``payload`` as a ``kind``.

    Raises:
        InvalidRequest: MessagePack, but not a ``kind``; the message has the path.
        MalformedMessage: not MessagePack, or nested too deeply.
    """
    try:
        return decoder_for(kind).decode(payload)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None
    except (ValueError, RecursionError, OverflowError) as error:
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors.
        raise MalformedMessage(str(error)) from None
