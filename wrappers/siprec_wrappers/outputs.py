"""Takes over the files that another program has written for us: whole ones, or none."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from siprec_wrappers.contract import Arguments, Failure, put_output

_LARGEST = 64 << 20  # octets; hours of words stay far below


def wanted(arguments: Arguments) -> list[str]:
    """The names of the files that the caller will look for."""
    return [f"{file.stem}.{form}" for file in arguments.audio for form in arguments.output_formats]


def take(arguments: Arguments, found: Mapping[str, bytes]) -> None:
    """Put what was found into the output directory.

    Raises Failure when a file is missing or is no JSON where it should be; what is whole is there
    nevertheless.
    """
    missing, broken = [], []
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name in wanted(arguments):
        content = found.get(name)
        if content is None:
            missing.append(name)
        elif name.endswith(".json") and not _is_json(content):
            broken.append(name)
        else:
            put_output(arguments.output_dir / name, content)
    if missing:
        raise Failure(f"the recogniser ended well, but wrote no {_listed(missing)}")
    if broken:
        raise Failure(f"the recogniser wrote no whole JSON: {_listed(broken)}")


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Those of the named files that are there and of a bearable size. Raises OSError."""
    found = {}
    for name in names:
        file = folder / name
        if file.is_file() and file.stat().st_size <= _LARGEST:  # a FIFO would be waited on
            found[name] = file.read_bytes()
    return found


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
