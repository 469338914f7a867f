"""The template that authors copy: installed as a package of its own, found, and right."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "providers" / "template"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The template built and installed beside the bridge; the environment that sees it."""
    room = tmp_path_factory.mktemp("template")
    source = shutil.copytree(TEMPLATE, room / "source")
    site = room / "site"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--disable-pip-version-check", "--target", str(site), str(source),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TESTS": str(source / "tests"),
    }


@pytest.mark.peer
def test_its_own_suite_passes_against_this_bridge(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", installed["TESTS"]],
        env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout, done.stdout


def test_the_bridge_finds_it_by_entry_point(tmp_path: Path, installed: dict[str, str]) -> None:
    environment = installed | {
        "SUPPORTED_VENDORS": "acme", "STT_DEFAULT_VENDOR": "acme", "DATA_DIR": str(tmp_path),
        "ACME_URL": "http://127.0.0.1:1/hear",
    }  # fmt: skip

    done = subprocess.run(
        [str(Path(sys.executable).with_name("siprec-bridge")), "doctor", "--provider"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    first, last = done.stdout.splitlines()
    assert first == "ok    options     Acme at http://127.0.0.1:1/hear, model general"
    assert last.startswith("BAD   program     unavailable: Cannot connect to host 127.0.0.1:1")
    assert done.returncode == 1
