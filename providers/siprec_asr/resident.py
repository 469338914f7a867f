"""What `whisper-resident` asks: several files in one request, openai-whisper's outputs back.

POST /transcribe, body: a line of JSON, then the octets of the files one after another.
`{"files": [{"name": "a", "size": 1234} | {"name": "b", "path": "/…/b.wav"}], "formats": ["json"],
"model", "language", "task", "beam_size", "batch_size", "word_timestamps", "initial_prompt",
"temperature", "condition_on_previous_text", "vad_filter", "deadline"}`; all but files may be
missing. Answer: `{"outputs": [{"name": "a", "json": "…"}]}`, each form as the text of its file.
Paths are read only for those who come by the Unix socket.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from siprec_asr.errors import Refused
from siprec_asr.http import over_unix_socket, read_limited
from siprec_asr.transcriber import Transcriber, Wishes
from siprec_asr.transcript import Transcript, render


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    size: Annotated[int, Field(ge=0)] | None = None
    path: Path | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.size is None) == (self.path is None):
            raise ValueError("a file has either size or path")
        return self


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    files: Annotated[list[_File], Field(min_length=1, max_length=256)]
    formats: list[Literal["json", "txt", "srt", "vtt", "tsv"]] = ["json"]
    model: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    beam_size: Annotated[int, Field(ge=1, le=20)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=128)] | None = None
    word_timestamps: bool | None = None
    initial_prompt: str | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    condition_on_previous_text: bool = True
    vad_filter: bool = False
    deadline: Annotated[float, Field(gt=0)] | None = None

    def wishes(self) -> Wishes:
        return Wishes(
            model=self.model,
            language=self.language,
            task=self.task,
            beam_size=self.beam_size,
            batch_size=self.batch_size,
            word_timestamps=self.word_timestamps,
            prompt=self.initial_prompt,
            temperature=self.temperature,
            condition_on_previous_text=self.condition_on_previous_text,
            vad_filter=self.vad_filter,
            deadline=self.deadline,
        )


class ResidentFront:
    """The route over a `Transcriber`."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application."""
        return [web.post("/transcribe", self.transcribe)]

    async def transcribe(self, request: web.Request) -> web.Response:
        """All files or none: the first that fails ends the others' work."""
        with self._transcriber.metrics.request("resident"):
            self._transcriber.queue.check()
            body = await read_limited(request.content, self._transcriber.settings.max_upload)
            head, _, octets = body.partition(b"\n")
            order = _read_order(head)
            sources = _sources(order, octets, paths=over_unix_socket(request))
            del body, octets
            wishes = order.wishes()
            self._transcriber.model(wishes.model)  # unknown: said before any work
            self._transcriber.queue.check()  # others were faster with what they had to send
            try:
                async with asyncio.TaskGroup() as parts:
                    heard = [
                        parts.create_task(self._one(file.name, source, wishes))
                        for file, source in zip(order.files, sources, strict=True)
                    ]
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        outputs = [
            {"name": file.name} | {form: render(task.result(), form) for form in order.formats}
            for file, task in zip(order.files, heard, strict=True)
        ]
        return web.json_response({"outputs": outputs})

    async def _one(self, name: str, source: Path | bytes, wishes: Wishes) -> Transcript:
        try:
            return await self._transcriber.transcribe(
                source, wishes, owner="resident", admitted=True
            )
        except Refused as refused:
            if refused.code not in ("not_audio", "too_long"):
                raise
            raise Refused(refused.status, refused.code, f"{name}: {refused.message}") from refused


def _read_order(head: bytes) -> _Order:
    try:
        return _Order.model_validate_json(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the first line"
        raise Refused(400, "bad_request", f"{where}: {first['msg']}") from error


def _sources(order: _Order, octets: bytes, *, paths: bool) -> list[Path | bytes]:
    sources: list[Path | bytes] = []
    at = 0
    for file in order.files:
        if file.path is not None:
            if not paths:
                raise Refused(403, "no_paths", "paths are read for the Unix socket's peers only")
            if not (file.path.is_absolute() and file.path.is_file()):
                raise Refused(400, "no_file", f"{json.dumps(str(file.path))} is no file here")
            sources.append(file.path)
        elif file.size is not None:
            sources.append(octets[at : at + file.size])
            at += file.size
    if at != len(octets):
        raise Refused(400, "bad_request", f"{at} octets of audio announced, {len(octets)} came")
    return sources
