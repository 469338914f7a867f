"""G.711 as tables: 8 bits a sample to 16-bit PCM and back. ITU-T G.711 (STL's 16-bit scaling)."""

import numpy as np
import numpy.typing as npt


def _mu_law_table() -> npt.NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law_table() -> npt.NDArray[np.int16]:
    code = np.arange(256, dtype=np.uint8) ^ np.uint8(0x55)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    base = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, base, (base + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _inverse(table: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """For each 16-bit sample, index by its unsigned form, the code whose value is nearest."""
    order = np.argsort(table, kind="stable")
    values = table[order].astype(np.int32)
    samples = np.arange(-32768, 32768, dtype=np.int32)
    above = np.clip(np.searchsorted(values, samples), 1, len(values) - 1)
    nearer = np.where(samples - values[above - 1] <= values[above] - samples, above - 1, above)
    codes = order[nearer].astype(np.uint8)
    return np.roll(codes, -32768)


_DECODE = {"PCMU": _mu_law_table(), "PCMA": _a_law_table()}
_ENCODE = {name: _inverse(table) for name, table in _DECODE.items()}


def decode_g711(name: str, payload: bytes) -> npt.NDArray[np.int16]:
    """PCM of a payload: int16, shape (octets,). `name` is PCMU or PCMA."""
    return _DECODE[name][np.frombuffer(payload, np.uint8)]


def encode_g711(name: str, pcm: npt.NDArray[np.int16]) -> bytes:
    """The payload of PCM samples, int16, shape (samples,). `name` is PCMU or PCMA."""
    return _ENCODE[name][pcm.view(np.uint16)].tobytes()
