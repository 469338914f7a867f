"""OpenAI's audio API: /v1/audio/transcriptions, /v1/audio/translations, /v1/models."""

from dataclasses import replace
from typing import Literal

from aiohttp import BodyPartReader, web

from siprec_asr.errors import Refused
from siprec_asr.http import read_limited
from siprec_asr.transcriber import Transcriber, Wishes
from siprec_asr.transcript import Transcript, render, verbose_document

_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_LONGEST_FIELD = 1 << 16
# What OpenAI's own clients call the hosted model.
_HOSTED = "whisper-1"


class OpenAiFront:
    """Routes over a `Transcriber`."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application."""
        return [
            web.post("/v1/audio/transcriptions", self.transcribe),
            web.post("/v1/audio/translations", self.translate),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
        ]

    async def transcribe(self, request: web.Request) -> web.Response:
        """A form with `file` and `model`; see OpenAI's reference."""
        return await self._answer(request, "transcribe")

    async def translate(self, request: web.Request) -> web.Response:
        """The same, into English."""
        return await self._answer(request, "translate")

    async def models(self, request: web.Request) -> web.Response:
        """What is on this machine, or set by its operator."""
        names = self._transcriber.shelf.names()
        return web.json_response({"object": "list", "data": [_model(one) for one in names]})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        return web.json_response(_model(self._transcriber.model(request.match_info["name"])))

    async def _answer(
        self, request: web.Request, task: Literal["transcribe", "translate"]
    ) -> web.Response:
        with self._transcriber.metrics.request("openai"):
            self._transcriber.queue.check()  # before all of a body is read for nothing
            audio, fields = await self._form(request)
            form = fields.get("response_format", ["json"])[-1]
            if form not in _FORMATS:
                raise Refused(
                    400, "bad_request", f"response_format is one of {', '.join(_FORMATS)}"
                )
            granularities = fields.get("timestamp_granularities[]", []) + fields.get(
                "timestamp_granularities", []
            )
            if unknown := set(granularities) - {"word", "segment"}:
                raise Refused(
                    400, "bad_request", f"timestamp_granularities: {', '.join(sorted(unknown))}"
                )
            words = "word" in granularities
            wishes = replace(_wishes(fields), task=task, word_timestamps=words)
            heard = await self._transcriber.transcribe(audio, wishes, owner="openai")
        return _rendered(heard, form, words, "segment" in granularities or not words)

    async def _form(self, request: web.Request) -> tuple[bytes, dict[str, list[str]]]:
        if request.content_type != "multipart/form-data":
            raise Refused(400, "bad_request", "multipart/form-data with a field `file` is needed")
        audio: bytes | None = None
        fields: dict[str, list[str]] = {}
        try:
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader) or part.name is None:
                    continue
                if part.name == "file":
                    audio = await read_limited(part, self._transcriber.settings.max_upload)
                else:
                    text = (await read_limited(part, _LONGEST_FIELD)).decode()
                    fields.setdefault(part.name, []).append(text)
        except (ValueError, LookupError) as error:
            raise Refused(400, "bad_request", f"the form cannot be read: {error}") from error
        if audio is None:
            raise Refused(400, "bad_request", "the field `file` is missing")
        return audio, fields


def _wishes(fields: dict[str, list[str]]) -> Wishes:
    def last(name: str) -> str | None:
        return fields.get(name, [""])[-1] or None

    model = last("model")
    temperature = last("temperature")
    try:
        # OpenAI's 0 means what Whisper's ladder of second tries begins with.
        warmth = float(temperature) if temperature else 0.0
    except ValueError as error:
        raise Refused(400, "bad_request", f"temperature: {temperature!r}") from error
    if not 0 <= warmth <= 1:
        raise Refused(400, "bad_request", "temperature is between 0 and 1")
    return Wishes(
        model=None if model == _HOSTED else model,
        language=last("language"),
        prompt=last("prompt"),
        temperature=warmth or None,
    )


def _rendered(heard: Transcript, form: str, words: bool, segments: bool) -> web.Response:
    match form:
        case "json":
            return web.json_response({"text": heard.text})
        case "verbose_json":
            return web.json_response(verbose_document(heard, words=words, segments=segments))
        case "text":
            return web.Response(text=f"{heard.text}\n")
        case _:
            kind = "text/vtt" if form == "vtt" else "application/x-subrip"
            return web.Response(text=render(heard, form), content_type=kind)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "siprec-asr"}
