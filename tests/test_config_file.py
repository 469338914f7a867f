"""config/siprec-bridge.env is what operators copy: it must say what the code does."""

import re
from datetime import timedelta
from pathlib import Path

from siprec_bridge.settings import Settings, load
from siprec_providers.whisper import WhisperOptions

TEXT = (Path(__file__).parents[1] / "config" / "siprec-bridge.env").read_text()
LINES = dict(re.findall(r"^#([A-Z_]+)=(.*)$", TEXT, re.M))


def shown(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta(days=days) if value == timedelta(days=days) and days:
            return f"{days}d"
        case timedelta():
            return f"{value.total_seconds():g}s"
        case tuple():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{name}:{word}" for name, word in value.items())
        case _:
            return str(value)


def test_it_names_every_setting_and_no_other() -> None:
    whisper = {f"WHISPER_{name.upper()}" for name in WhisperOptions.model_fields}

    assert set(LINES) == {name.upper() for name in Settings.model_fields} | whisper | {"TMPDIR"}


def test_its_values_are_the_defaults() -> None:
    for name, field in Settings.model_fields.items():
        assert LINES[name.upper()] == shown(field.default), name
    for name, field in WhisperOptions.model_fields.items():
        value = field.default
        text = f"{value:g}s" if name == "timeout" else shown(value)
        assert LINES[f"WHISPER_{name.upper()}"] == text, name


def test_its_values_are_accepted_as_they_stand() -> None:
    given = {name: value for name, value in LINES.items() if value}

    assert load(given) == Settings.model_validate({})


def test_every_line_has_its_explanation() -> None:
    for name in LINES:
        assert re.search(rf"^# [^\n]{{10,}}\n#{name}=", TEXT, re.M), name
