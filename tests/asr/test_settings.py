"""ASR_…: read, refused with a reason, and told the same in config and docs."""

import re
from pathlib import Path

import pytest
import yaml

from harness.asr import CPU
from siprec_asr.device import choose_device
from siprec_asr.errors import ConfigurationError, Refused
from siprec_asr.models import ModelShelf
from siprec_asr.settings import Settings, default_socket, load

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "config" / "siprec-asr.env").read_text()
LINES = dict(re.findall(r"^#(ASR_[A-Z_]+)=(.*)$", CONFIG, re.M))


def test_durations_sizes_lists_and_octal_modes(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")

    settings = load(
        {
            "ASR_DEADLINE": "1h30m",
            "ASR_CACHE_MEMORY_LIMIT": "8GiB",
            "ASR_PRELOAD": "base, large-v3",
            "ASR_SOCKET_MODE": "0660",
            "ASR_TOKEN_FILE": str(tmp_path / "token"),
            "ASR_LANGUAGE": "",
            "PATH": "/bin",
        }
    )

    assert settings.deadline == 5400
    assert settings.cache_memory_limit == 8 << 30
    assert settings.preload == ("base", "large-v3")
    assert settings.socket_mode == 0o660
    assert settings.token == "s3cret"
    assert settings.language is None


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("ASR_DEADLINE", "soon", "like 90s, 20m"),
        ("ASR_CACHE_MEMORY_LIMIT", "8 gigs", "like 256MiB"),
        ("ASR_PORT", "70000", "65535"),
        ("ASR_DEVICE", "tpu", "cuda"),
        ("ASR_BEAM", "5", "no such setting"),
        ("ASR_SOCKET_MODE", "rw", "ASR_SOCKET_MODE=rw"),
        ("ASR_MODELS_DIR", "/nonexistent", "not a folder"),
        ("ASR_TOKEN_FILE", "/nonexistent", "No such file"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, cause: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        load({name: value})

    assert str(told.value).startswith(name)
    assert cause in str(told.value)


def test_the_socket_lies_where_the_client_looks(tmp_path: Path) -> None:
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "siprec-asr.sock"
    assert default_socket({}) is None


def test_the_device_is_chosen_with_a_reason() -> None:
    def choose(wanted: str, kind: str, devices: int) -> tuple[str, str, str]:
        supported = {"cuda": {"float16", "int8", "float32"}, "cpu": {"int8", "float32"}}
        device = choose_device(
            wanted,
            kind,
            0,
            cuda_devices=lambda: devices,
            compute_types=lambda one, _: supported[one],
        )
        return device.name, device.compute_type, device.reason

    assert choose("auto", "auto", 1)[:2] == ("cuda", "float16")
    assert choose("auto", "auto", 0)[:2] == ("cpu", "int8")
    assert choose("cpu", "float32", 1)[:2] == ("cpu", "float32")
    assert "no CUDA device found; int8 is the best" in choose("auto", "auto", 0)[2]
    with pytest.raises(ConfigurationError, match="ASR_DEVICE=cuda: 0 CUDA devices"):
        choose("cuda", "auto", 0)
    with pytest.raises(ConfigurationError, match="ASR_COMPUTE_TYPE=float16: cpu supports float32"):
        choose("cpu", "float16", 0)


def test_clients_name_known_sizes_and_models_of_the_folder_but_no_other_path(
    models_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.bin").touch()
    settings = load({"ASR_MODELS_DIR": str(models_dir), "ASR_MODEL": str(tmp_path)})
    shelf = ModelShelf(settings, CPU, lambda: ["large-v3-turbo"])

    assert shelf.name("tiny") == shelf.name("./tiny") == shelf.name(str(models_dir / "tiny"))
    assert shelf.name("large-v3-turbo") == "large-v3-turbo"
    assert shelf.name(str(tmp_path)) == str(tmp_path)  # the operator's own choice
    for wanted in ("../" + tmp_path.name, "/etc", "someone/repository", "", "a\0b", "x" * 5000):
        with pytest.raises(Refused) as told:
            shelf.name(wanted)
        assert told.value.status == 404


def test_config_file_and_docs_name_every_setting_and_its_default() -> None:
    docs = dict(
        re.findall(
            r"^\| `(ASR_[A-Z_]+)` \| `?([^|`]*)`? \|",
            (ROOT / "docs" / "asr.md").read_text(),
            re.M,
        )
    )

    assert list(LINES) == list(docs) == [f"ASR_{name.upper()}" for name in Settings.model_fields]
    assert load({name: value for name, value in LINES.items() if value}) == Settings()
    assert {name: value.strip() for name, value in docs.items()} == LINES


def test_the_compose_example_has_all_that_it_names_and_nobody_comes_in_without_the_token() -> None:
    text = (ROOT / "docs" / "asr.md").read_text()
    document = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    service = document["services"]["asr"]
    variables = {name: str(value) for name, value in service["environment"].items()}

    secret = Path(variables.pop("ASR_TOKEN_FILE"))
    settings = load(variables)

    assert (settings.host, settings.wyoming_port) == ("0.0.0.0", 0)
    assert service["secrets"] == list(document["secrets"]) == [secret.name]
    assert [one.partition(":")[0] for one in service["volumes"]] == list(document["volumes"])
    assert service["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]


def test_docs_name_every_metric() -> None:
    from siprec_asr.metrics import Metrics

    documented = set(re.findall(r"`(siprec_asr_[a-z_]+)`", (ROOT / "docs" / "asr.md").read_text()))
    metrics = Metrics()
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("siprec_asr_")
    }

    assert documented == names
    assert b"_created" not in metrics.exposition()
