"""The whisper provider against programs that keep the contract, and many that do not."""

import asyncio
import os
import wave
from dataclasses import replace
from pathlib import Path

import pytest

from harness.bridge import eventually
from harness.recognisers import calls, is_alive, recogniser
from harness.rtp import tone
from siprec_bridge.provider import (
    AudioFile,
    ConfigurationError,
    Job,
    ProviderError,
    ProviderUnavailable,
)
from siprec_providers.whisper import WhisperCli

SECONDS = 1.0


def wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(tone(440, SECONDS, 16000).tobytes())
    return path


def job(folder: Path, id: str = "j1") -> Job:
    return Job(
        id, tuple(AudioFile(key, wav(folder / f"{id}-{key}.wav"), SECONDS) for key in ("1", "2"))
    )


def provider(binary: Path, folder: Path, **options: str) -> WhisperCli:
    temp = folder / "tmp"
    temp.mkdir(exist_ok=True)
    return WhisperCli.from_options(
        {"WHISPER_BINARY_PATH": str(binary), "TMPDIR": str(temp), "WHISPER_TIMEOUT": "30s"}
        | options
    )


def left_in_temp(folder: Path) -> list[Path]:
    return list((folder / "tmp").iterdir())


async def test_runs_share_the_cores_unless_the_operator_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    binary = recogniser(tmp_path, "speaks")
    few = provider(binary, tmp_path, WHISPER_MAX_CONCURRENT="2")

    await few.transcribe([job(tmp_path)])
    await asyncio.gather(*(few.transcribe([job(tmp_path, id)]) for id in ("j1", "j2")))
    await few.transcribe([job(tmp_path), job(tmp_path, "j2")])  # more wait than there are slots
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    await provider(binary, tmp_path).transcribe([job(tmp_path)])

    alone, one, other, batch, told = (int(str(call["threads"])) for call in calls(binary))
    half = max(1, cores // 2)
    assert (alone, batch, told) == (cores, half, 3)
    assert min(one, other) == half  # of the second; the first may have been alone yet


async def test_both_legs_go_into_one_run_and_each_gets_its_own_words(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "speaks")
    whisper = provider(
        binary, tmp_path, WHISPER_MODEL="large-v3", WHISPER_LANGUAGE="de", WHISPER_TRANSLATE="true",
        WHISPER_MODELS_DIR="/models", WHISPER_EXTRA_ARGS="--beam_size 5 --initial_prompt 'a b'",
    )  # fmt: skip

    run = await whisper.transcribe([job(tmp_path), job(tmp_path, "j2")])

    (call,) = calls(binary)
    arguments = call["arguments"]
    assert isinstance(arguments, list)
    assert len({one for one in arguments[:4]}) == 4
    assert arguments[4:] == [
        "--model", "large-v3", "--output_dir", arguments[7], "--output_format", "json",
        "--task", "translate", "--language", "de", "--model_dir", "/models",
        "--beam_size", "5", "--initial_prompt", "a b",
    ]  # fmt: skip
    for id in ("j1", "j2"):
        outcome = run.outcomes[id]
        assert not isinstance(outcome, ProviderError)
        assert {key: one.text for key, one in outcome.items()} == {
            "1": "hello there",
            "2": "hello there",
        }
    facts = run.facts
    assert (facts.status, facts.reason, facts.exit_code, facts.files) == ("success", "ok", 0, 4)
    assert facts.temp_bytes > 4 * 32000 * SECONDS
    assert left_in_temp(tmp_path) == []


async def test_what_differs_in_model_language_or_prompt_gets_runs_of_its_own(
    tmp_path: Path,
) -> None:
    binary = recogniser(tmp_path, "speaks")
    whisper = provider(
        binary, tmp_path, WHISPER_LANGUAGE="en", WHISPER_EXTRA_ARGS="--initial_prompt house"
    )
    plain = [job(tmp_path, "a"), replace(job(tmp_path, "b"), model="base", language="en")]
    special = replace(job(tmp_path, "c"), model="large-v3", language="auto", prompt="Storno, x")

    run = await whisper.transcribe([plain[0], special, plain[1]])

    first, second = (one["arguments"] for one in calls(binary))
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first.index("--model") == 4
    assert first[4:6] == ["--model", "base"]
    assert first[-4:] == ["--language", "en", "--initial_prompt", "house"]
    assert second.index("--model") == 2
    assert second[2:4] == ["--model", "large-v3"]
    assert "--language" not in second
    assert second[-2:] == ["--initial_prompt", "Storno, x"]
    assert set(run.outcomes) == {"a", "b", "c"}
    assert run.facts.files == 6


async def test_a_program_that_takes_only_one_file_gets_the_legs_one_by_one(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "takes_one_file")
    whisper = provider(binary, tmp_path, WHISPER_BATCH="1")

    run = await whisper.transcribe([job(tmp_path), job(tmp_path, "j2")])

    assert len(calls(binary)) == 4
    for outcome in (run.outcomes["j1"], run.outcomes["j2"]):
        assert not isinstance(outcome, ProviderError)
        assert set(outcome) == {"1", "2"}
    assert (run.facts.status, run.facts.files) == ("success", 4)


async def test_a_leg_that_fails_in_a_run_of_its_own_fails_its_job(tmp_path: Path) -> None:
    whisper = provider(recogniser(tmp_path, "fails_the_second_time"), tmp_path, WHISPER_BATCH="1")

    run = await whisper.transcribe([job(tmp_path), job(tmp_path, "j2")])

    assert isinstance(run.outcomes["j1"], ProviderError)
    assert not isinstance(run.outcomes["j2"], ProviderError)
    assert run.facts.reason == "exit_code"


async def test_outputs_are_found_under_the_names_that_early_versions_gave_them(
    tmp_path: Path,
) -> None:
    whisper = provider(recogniser(tmp_path, "names_outputs_as_early_versions_did"), tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    heard = run.outcomes["j1"]
    assert not isinstance(heard, ProviderError)
    assert {one.text for one in heard.values()} == {"hello there"}


async def test_silence_is_an_empty_transcript(tmp_path: Path) -> None:
    whisper = provider(recogniser(tmp_path, "is_silent"), tmp_path)

    outcome = (await whisper.transcribe([job(tmp_path)])).outcomes["j1"]

    assert not isinstance(outcome, ProviderError)
    assert [one.segments for one in outcome.values()] == [(), ()]


@pytest.mark.parametrize(
    ("behaviour", "reason", "exit_code"),
    [
        ("exits_1", "exit_code", 1),
        ("prints_garbage", "no_output", 0),
        ("writes_bad_json", "bad_output", 0),
        ("writes_nothing", "no_output", 0),
        ("writes_a_pipe", "no_output", 0),
    ],
)
async def test_each_way_to_fail_has_its_name(
    tmp_path: Path, behaviour: str, reason: str, exit_code: int
) -> None:
    whisper = provider(recogniser(tmp_path, behaviour), tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    outcome = run.outcomes["j1"]
    assert isinstance(outcome, ProviderError)
    assert not isinstance(outcome, ProviderUnavailable)
    assert outcome.retryable
    assert (outcome.reason, run.facts.reason, run.facts.exit_code) == (reason, reason, exit_code)
    assert run.facts.status == "error"
    assert left_in_temp(tmp_path) == []


async def test_the_end_of_stderr_is_kept(tmp_path: Path) -> None:
    whisper = provider(recogniser(tmp_path, "exits_1"), tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    assert run.facts.stderr_tail == "out of memory on GPU 3"


async def test_what_it_printed_to_stdout_is_in_no_error(tmp_path: Path) -> None:
    whisper = provider(recogniser(tmp_path, "tells_and_exits_1"), tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    assert "card" not in f"{run.facts} {run.outcomes['j1']}"


async def test_relative_paths_hold_though_the_program_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recogniser(tmp_path, "speaks")
    Path("tmp").mkdir()
    whisper = WhisperCli.from_options(
        {"WHISPER_BINARY_PATH": "./speaks", "TMPDIR": "tmp", "WHISPER_MODELS_DIR": "models"}
    )

    run = await whisper.transcribe([job(tmp_path)])

    assert run.facts.status == "success"
    assert str(tmp_path / "models") in str(calls(tmp_path / "speaks"))


async def test_the_program_gets_the_variables_of_the_configuration(tmp_path: Path) -> None:
    binary = tmp_path / "tells"
    binary.write_text('#!/bin/sh\necho "$WHISPER_SSH_HOST in $TMPDIR" >&2\nexit 9\n')
    binary.chmod(0o755)
    whisper = provider(binary, tmp_path, WHISPER_SSH_HOST="gpu1", AMQP_URL="amqp://u:secret@host")

    run = await whisper.transcribe([job(tmp_path)])

    assert run.facts.stderr_tail == f"gpu1 in {tmp_path / 'tmp'}"


async def test_a_flood_on_stderr_neither_blocks_nor_fills_the_memory(tmp_path: Path) -> None:
    whisper = provider(recogniser(tmp_path, "floods_stderr"), tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    assert run.facts.status == "success"
    assert run.facts.stderr_tail.endswith("the last words")
    assert len(run.facts.stderr_tail) <= 4096


@pytest.mark.parametrize("behaviour", ["hangs", "hangs_in_a_child", "ignores_term"])
async def test_on_timeout_the_whole_group_dies_and_the_slot_returns(
    tmp_path: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_providers.process._TERM_GRACE_S", 0.3)
    binary = recogniser(tmp_path, behaviour)
    whisper = provider(binary, tmp_path, WHISPER_TIMEOUT="600ms", WHISPER_MAX_CONCURRENT="1")

    run = await whisper.transcribe([job(tmp_path)])

    outcome = run.outcomes["j1"]
    assert isinstance(outcome, ProviderError)
    assert (outcome.reason, run.facts.status) == ("timeout", "timeout")
    child = binary.with_suffix(".child")
    pids = [int(str(one["pid"])) for one in calls(binary)]
    pids += [int(child.read_text())] if child.exists() else []
    await eventually(lambda: not any(is_alive(pid) for pid in pids), "the end of the group")
    assert left_in_temp(tmp_path) == []
    second = await whisper.transcribe([job(tmp_path)])  # the only slot is free again
    assert second.facts.status == "timeout"


async def test_a_child_left_behind_on_the_pipe_is_ended_and_the_result_counts(
    tmp_path: Path,
) -> None:
    binary = recogniser(tmp_path, "leaves_a_child_that_hangs")
    whisper = provider(binary, tmp_path)

    run = await whisper.transcribe([job(tmp_path)])

    assert run.facts.status == "success"
    assert run.facts.duration < 20
    pid = int(binary.with_suffix(".child").read_text())
    await eventually(lambda: not is_alive(pid), "the end of the child")


async def test_cancelling_ends_the_program_and_leaves_nothing(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "hangs")
    whisper = provider(binary, tmp_path)
    run = asyncio.create_task(whisper.transcribe([job(tmp_path)]))
    await eventually(lambda: bool(calls(binary)), "the start of the program")

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    pid = int(str(calls(binary)[0]["pid"]))
    await eventually(lambda: not is_alive(pid), "the end of the program")
    assert left_in_temp(tmp_path) == []


async def test_cancelling_again_insists_where_the_program_does_not_want_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_providers.process._TERM_GRACE_S", 60.0)
    binary = recogniser(tmp_path, "ignores_term")
    whisper = provider(binary, tmp_path)
    run = asyncio.create_task(whisper.transcribe([job(tmp_path)]))
    await eventually(lambda: bool(calls(binary)), "the start of the program")
    run.cancel()
    await eventually(lambda: binary.with_suffix(".told").exists(), "its being asked to end")

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    pid = int(str(calls(binary)[0]["pid"]))
    await eventually(lambda: not is_alive(pid), "the end of the program")


async def test_only_so_many_programs_run_at_once(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "waits_for_leave")
    whisper = provider(binary, tmp_path, WHISPER_MAX_CONCURRENT="2")
    runs = [asyncio.create_task(whisper.transcribe([job(tmp_path, f"j{n}")])) for n in range(4)]
    await eventually(lambda: len(calls(binary)) == 2, "two programs")

    alive_at_first = [is_alive(int(str(one["pid"]))) for one in calls(binary)]
    binary.with_suffix(".go").touch()
    await asyncio.gather(*runs)

    assert alive_at_first == [True, True]
    assert len(calls(binary)) == 4


async def test_a_program_that_is_not_there_is_no_failure_of_the_job(tmp_path: Path) -> None:
    whisper = provider(tmp_path / "nothing-here", tmp_path)
    not_executable = tmp_path / "text"
    not_executable.write_text("hello")

    run = await whisper.transcribe([job(tmp_path)])

    assert isinstance(run.outcomes["j1"], ProviderUnavailable)
    assert (await whisper.unavailable() or "").endswith("does not exist")
    cause = await provider(not_executable, tmp_path).unavailable()
    assert (cause or "").endswith("is not executable")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WHISPER_TIMEOUT", "soon"),
        ("WHISPER_TIMEOUT", "0s"),
        ("WHISPER_MAX_CONCURRENT", "-2"),
        ("WHISPER_OUTPUT_FORMAT", "docx"),
        ("WHISPER_TASK", "sing"),
        ("WHISPER_EXTRA_ARGS", "'unclosed"),
        ("TMPDIR", "/nowhere/at/all"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        provider(recogniser(tmp_path, "speaks"), tmp_path, **{name: value})

    assert error.value.setting == f"{name}={value}"
    assert error.value.reason


def test_minus_one_means_as_many_as_cores_and_zero_no_limit(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "speaks")

    assert (provider(binary, tmp_path).max_concurrent or 0) >= 1
    assert provider(binary, tmp_path, WHISPER_MAX_CONCURRENT="0").max_concurrent is None


def test_it_says_which_program_it_chose_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = WhisperCli.from_options({"TMPDIR": str(tmp_path)}).describe()
    (tmp_path / "speaks").touch()
    recogniser(tmp_path, "speaks").rename(tmp_path / "whisper")
    found = WhisperCli.from_options({"TMPDIR": str(tmp_path)}).describe()

    assert "stand-in, not Whisper" in bundled
    assert found == f"{tmp_path}/whisper (found on PATH), model base"


async def test_the_program_gets_what_is_configured_for_it_wherever_that_stands(
    tmp_path: Path,
) -> None:
    binary = tmp_path / "tells"
    binary.write_text('#!/bin/sh\necho "$WHISPER_HTTP_URL" >&2\nexit 3\n')
    binary.chmod(0o755)

    run = await provider(binary, tmp_path, WHISPER_HTTP_URL="http://gpu:9000/asr").transcribe(
        [job(tmp_path)]
    )

    assert run.facts.stderr_tail == "http://gpu:9000/asr"
