"""For operators: health, metrics, models in memory, settings."""

import asyncio
from collections.abc import Callable

from aiohttp import web

from siprec_asr.errors import ConfigurationError, Refused
from siprec_asr.metrics import CONTENT_TYPE
from siprec_asr.settings import CHANGEABLE
from siprec_asr.transcriber import Transcriber


class Admin:
    """Routes over a `Transcriber`. `unready` tells why no work should come, or None."""

    def __init__(self, transcriber: Transcriber, unready: Callable[[], str | None]) -> None:
        self._transcriber = transcriber
        self._unready = unready

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application."""
        return [
            web.get("/health", self.health),
            web.get("/ready", self.ready),
            web.get("/metrics", self.metrics),
            web.get("/admin/models", self.models),
            web.post("/admin/models/{action:load|unload|reload}", self.act),
            web.get("/admin/config", self.config),
            web.patch("/admin/config", self.change),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """The process answers."""
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """200 when ASR_PRELOAD is loaded and the server is not stopping."""
        reason = self._unready()
        if reason is None:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": reason}, status=503, headers={"Retry-After": "5"})

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text form."""
        body = self._transcriber.metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def models(self, request: web.Request) -> web.Response:
        """What is in memory, for whom."""
        return web.json_response(
            {
                "models": [
                    {
                        "name": one.name,
                        "memory_bytes": one.memory,
                        "owners": list(one.owners),
                        "loading": one.loading,
                        "idle_seconds": round(one.idle_seconds, 1),
                    }
                    for one in self._transcriber.loaded()
                ]
            }
        )

    async def act(self, request: web.Request) -> web.Response:
        """Load, unload or reload `{"model": name}`."""
        body = await _object(request)
        wanted = body.get("model")
        if not isinstance(wanted, str):
            raise Refused(400, "bad_request", 'the body is {"model": name}')
        name = self._transcriber.model(wanted)
        cache = self._transcriber.cache
        action = {"load": cache.load, "unload": cache.unload, "reload": cache.reload}
        await asyncio.to_thread(action[request.match_info["action"]], name)
        return await self.models(request)

    async def config(self, request: web.Request) -> web.Response:
        """All settings as they are now, secrets masked, and which may be changed."""
        return web.json_response(
            {
                "settings": self._transcriber.settings.model_dump(mode="json")
                | {"token": "***" if self._transcriber.settings.token else None},
                "changeable": sorted(CHANGEABLE),
            }
        )

    async def change(self, request: web.Request) -> web.Response:
        """Change some until the next start: `{"beam_size": 1, "cache_ttl": "10m"}`."""
        changes = await _object(request)
        if fixed := set(changes) - CHANGEABLE:
            raise Refused(
                400, "bad_request", f"{', '.join(sorted(fixed))}: set at start only, or no setting"
            )
        if "model" in changes:
            self._transcriber.model(str(changes["model"]))
        try:
            self._transcriber.change(changes)
        except ConfigurationError as error:
            raise Refused(400, "bad_request", str(error)) from error
        return await self.config(request)


async def _object(request: web.Request) -> dict[str, object]:
    # This type is what keeps pages in an operator's browser from asking: they would need CORS.
    if request.content_type != "application/json":
        raise Refused(415, "bad_request", "Content-Type: application/json is needed")
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise Refused(400, "bad_request", f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "bad_request", "a JSON object is needed")
    return body
