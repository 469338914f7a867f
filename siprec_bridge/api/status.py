"""The page, how we are, and the metrics."""

from importlib.resources import files

from aiohttp import web

from siprec_bridge.access import Refused
from siprec_bridge.api.admission import Admission
from siprec_bridge.api.asking import Route
from siprec_bridge.telemetry import Health, Metrics
from siprec_bridge.telemetry.metrics import CONTENT_TYPE as METRICS_TYPE


class Status:
    """What anybody may ask; with `open_metrics` no token is needed for the metrics either."""

    def __init__(
        self, metrics: Metrics, health: Health, admission: Admission, *, open_metrics: bool
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._admission = admission
        self._open_metrics = open_metrics

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/", self._page, None),
            Route("GET", "/health/live", self._live, None),
            Route("GET", "/health/ready", self._ready, None),
            Route("GET", "/metrics", self._render, None if self._open_metrics else "metrics"),
        ]

    async def _page(self, _: web.Request) -> web.Response:
        page = files("siprec_bridge.api").joinpath("page/index.html").read_text("utf-8")
        return web.Response(
            text=page,
            content_type="text/html",
            headers={
                "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; "
                "script-src 'unsafe-inline'; connect-src 'self' ws: wss:; "
                "form-action 'self'; frame-ancestors 'none'"
            },
        )

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        """For anybody whether calls can be taken; what is wrong, for those who come with any token.

        Taken out of service for a broker that is away, a recorder would lose calls for nothing.
        """
        try:
            self._admission.client(request)
            known = True
        except Refused as refused:
            if refused.reason != "none":
                raise
            known = False
        report = await self._health.report()
        facts = {name: cause or "ok" for name, cause in report.facts.items()}
        return web.json_response(
            {"ready": report.ready, "degraded": report.degraded}
            | ({"facts": facts} if known else {}),
            status=200 if report.ready else 503,
        )

    async def _render(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})
