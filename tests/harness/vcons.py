"""An independent look at vCons: the draft's rules written down as a schema, and its indices."""

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_SCHEMA = Path(__file__).parents[1] / "vcon" / "core-04.schema.json"
_VALIDATOR = Draft202012Validator(json.loads(_SCHEMA.read_text()))


def self_signed(folder: Path, *kind: str) -> tuple[bytes, bytes]:
    """A certificate, which has signed itself, and its key, as PEM. `kind`: of openssl's -newkey."""
    certificate, key = folder / "signer.pem", folder / "signer.key"
    kind = kind or ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-subj", "/CN=recorder",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate.read_bytes(), key.read_bytes()


def checked(text: bytes | str) -> dict[str, Any]:
    """A container that keeps draft-ietf-vcon-vcon-core-04, parsed."""
    vcon: dict[str, Any] = json.loads(text)
    _VALIDATOR.validate(vcon)
    parties, dialogs = range(len(vcon["parties"])), range(len(vcon["dialog"]))
    for dialog in vcon["dialog"]:
        assert _numbers(dialog["parties"]) <= set(parties)
        assert dialog["originator"] in parties
        assert set(dialog.get("recordings", ())) <= set(dialogs)
        assert dialog.get("recording_set", 0) in dialogs
        history = dialog.get("party_history", [])
        assert {one["party"] for one in history} <= set(parties)
        times = [datetime.fromisoformat(one["time"]) for one in history]
        assert times == sorted(times)
    for one in vcon.get("attachments", []):
        assert one["party"] in parties
        assert one["dialog"] in dialogs
    for one in vcon.get("analysis", []):
        assert _numbers(one["dialog"]) <= set(dialogs)
        for said in one["body"]["utterances"]:
            assert said.get("party", 0) in parties
            assert said.get("dialog", 0) in dialogs
    return vcon


def _numbers(value: object) -> set[int]:
    if isinstance(value, list):
        return {number for one in value for number in _numbers(one)}
    return {value} if isinstance(value, int) else set()
