"""faster-whisper itself in the child of a farm's worker, at a real RabbitMQ.

The model is made here and says one text, whatever it hears (harness.tiny_whisper): what is tried is
loading, running and losing it in that process, not how well it hears.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness.farm import Farm, audio, farm, until
from harness.rabbitmq import RabbitMq
from harness.tiny_whisper import make_ctranslate2

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(120)]

TEXT = "thank you for calling, how can I help?"


def ask(one: Farm, file: Path, model: Path) -> "subprocess.CompletedProcess[str]":
    return one.run(
        str(file), "--model", str(model), "--output_dir", str(one.folder / "out"),
        "--output_format", "json", "--language", "en",
    )  # fmt: skip


def answer(one: Farm, file: Path) -> dict[str, object]:
    found = json.loads((one.folder / "out" / f"{file.stem}.json").read_text())
    assert isinstance(found, dict)
    return found


def test_the_child_loads_the_model_once_and_another_child_loads_it_again(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    model = make_ctranslate2(tmp_path / "fine tuned", TEXT)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.bin").write_bytes(b"<html>not found</html>")
    files = [audio(tmp_path / f"{number}.wav", 1.0, number) for number in range(4)]

    with farm(tmp_path / "farm", rabbitmq, ENGINE="faster-whisper") as one:
        one.environment |= {"HF_HUB_OFFLINE": "1"}
        worker = one.worker("")
        first = ask(one, files[0], model)
        child = worker.child()
        loaded = _runs_models(child)
        second = ask(one, files[1], model)
        same = worker.child()
        unusable = ask(one, files[2], broken)
        os.kill(child, signal.SIGKILL)
        until(lambda: _has_another_child(worker.process.pid, child), "another child")
        third = ask(one, files[3], model)
        parent = _runs_models(worker.process.pid)
        code = worker.stop()

        assert [run.returncode for run in (first, second, third)] == [0, 0, 0], worker.log()
        for file in (files[0], files[1], files[3]):
            document = answer(one, file)
            assert (document["text"], document["language"]) == (TEXT, "en")
            [segment] = document["segments"]  # type: ignore[misc]
            assert [word["word"].strip() for word in segment["words"]] == TEXT.split()  # type: ignore[has-type]
    assert same == child
    assert loaded
    assert not parent
    assert unusable.returncode in (126, 127)
    assert "broken" in unusable.stderr
    assert "Traceback" not in unusable.stderr
    assert code == 0


def _runs_models(pid: int) -> bool:
    """Whether the process has loaded CTranslate2."""
    return "ctranslate2" in Path(f"/proc/{pid}/maps").read_text()


def _has_another_child(parent: int, child: int) -> bool:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return any(int(one) != child for one in children)
