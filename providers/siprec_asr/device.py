"""Where models run, and with which arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

from siprec_asr.errors import ConfigurationError

# Best first: what costs least for a result that is as good.
_PREFERRED = {
    "cuda": ("float16", "int8_float16", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """`name` is cpu or cuda; `reason` says in words why this one."""

    name: str
    index: int
    compute_type: str
    reason: str


def choose_device(
    wanted: str,
    compute_type: str,
    index: int = 0,
    *,
    cuda_devices: Callable[[], int],
    compute_types: Callable[[str, int], set[str]],
) -> Device:
    """Fill in what is `auto`. Raises ConfigurationError when what is wanted is not to be had."""
    count = cuda_devices() if wanted != "cpu" else 0
    if wanted == "cuda" and count <= index:
        raise ConfigurationError(
            f"ASR_DEVICE=cuda: {count} CUDA devices are usable, ASR_DEVICE_INDEX={index} is not one"
        )
    if wanted == "auto" and count > index:
        name, reason = "cuda", f"{count} CUDA devices found"
    elif wanted == "auto":
        name, reason = "cpu", "no CUDA device found"
    else:
        name, reason = wanted, f"ASR_DEVICE={wanted}"
    if name == "cpu":
        index = 0
    supported = compute_types(name, index)
    if compute_type == "auto":
        chosen = next((one for one in _PREFERRED[name] if one in supported), "float32")
        return Device(name, index, chosen, f"{reason}; {chosen} is the best that it supports")
    if compute_type not in supported:
        raise ConfigurationError(
            f"ASR_COMPUTE_TYPE={compute_type}: {name} supports {', '.join(sorted(supported))}"
        )
    return Device(name, index, compute_type, f"{reason}; ASR_COMPUTE_TYPE={compute_type}")


def detect_device(wanted: str, compute_type: str, index: int) -> Device:
    """`choose_device` by what CTranslate2 finds on this machine."""
    import ctranslate2  # heavy, and of the extra `asr`

    return choose_device(
        wanted,
        compute_type,
        index,
        cuda_devices=ctranslate2.get_cuda_device_count,
        compute_types=lambda name, device: set(
            ctranslate2.get_supported_compute_types(name, device)
        ),
    )
