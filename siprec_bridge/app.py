"""The front door for readers: builds every part from the settings, starts and stops them in order.

signalling -> recording -> media -> archive -> transcription -> completion -> delivery
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from siprec_bridge import __version__
from siprec_bridge.access import Gate
from siprec_bridge.api import Api, Front
from siprec_bridge.delivery import (
    AmqpSink,
    Relay,
    TranscriptSocket,
    WebhookSink,
    load_hooks,
)
from siprec_bridge.live.desk import LiveDesk
from siprec_bridge.live.recogniser import Wanted
from siprec_bridge.media import Finisher, MediaEngine, MediaEvent, MediaUnavailable
from siprec_bridge.parts import (
    brokers_of,
    certificate_of,
    media_policy_of,
    node_of,
    recipients_of,
    redactor_of,
    safekeeping_of,
    speech_of,
    vcon_events_of,
    vcon_signer_of,
)
from siprec_bridge.provider import ConfigurationError, is_off
from siprec_bridge.recording import (
    Archive,
    Capacity,
    Completion,
    Custodian,
    Desk,
    Eraser,
    Keep,
    LadderKeeper,
    LateRedaction,
    Orders,
    RecordingService,
    Retention,
    StoredAudio,
    Stores,
    left_behind,
    recover,
)
from siprec_bridge.settings import Settings, tokens_of
from siprec_bridge.signalling import Admission, Listener, TlsFiles, TlsServerContext
from siprec_bridge.sip import DigestAuthority, Output, Peer, SipServer
from siprec_bridge.store import Database, StoreError
from siprec_bridge.store.rewind import rewind
from siprec_bridge.telemetry import Health, Metrics
from siprec_bridge.transcription import (
    Guard,
    Scheduler,
    load_providers,
    load_rules,
)

log = structlog.get_logger()

_HOUSEKEEPING_S = 10.0
_RESTART_S = 5.0
_ACCESS_CHECK_S = 5.0
_LAG_CHECK_S = 0.1
_CLOCK_CHECK_S = 1.0
_STEP_S = 2.0  # less is slewed, or waited for


class Bridge:
    """All parts of one bridge, wired."""

    def __init__(self, settings: Settings, options: Mapping[str, str]) -> None:
        self.settings = settings
        self.metrics = metrics = Metrics()
        self.health = Health()
        self.providers = load_providers(
            settings.supported_vendors, settings.stt_default_vendor, options
        )
        self.provider = self.providers[0]
        vendors = [one.name for one in self.providers]
        rules = load_rules(settings.transcription_rules, vendors)
        self.orders = Orders(self.provider.name, vendors, rules, shared=settings.recordings_shared)
        self.database = Database(
            settings.database,
            on_commit_seconds=metrics.database_commit_seconds.observe,
            wait=settings.database_wait.total_seconds(),
            node=node_of(settings),
        )
        brokers = brokers_of(settings)
        self.broker = (
            AmqpSink(
                brokers,
                metrics,
                exchange=settings.amqp_exchange,
                topology=settings.amqp_topology,
                inline_limit=settings.amqp_inline_limit,
                public_url=settings.http_public_url or "",
            )
            if brokers is not None
            else None
        )
        hooks = load_hooks(settings.webhooks)
        self.webhooks = [WebhookSink(hook, metrics) for hook in hooks]
        self.relays = [Relay(self.database, self.broker, metrics)] if self.broker else []
        self.relays += [
            Relay(
                self.database,
                sink,
                metrics,
                sessions_at_once=sink.hook.concurrency,
                patience=sink.hook.retry_for,
            )
            for sink in self.webhooks
        ]
        sinks = recipients_of(settings, hooks)
        metrics.preset(
            model=self.provider.model, sinks=[one.name for one in self.relays], vendors=vendors
        )

        self.gate = Gate(
            settings.http_tokens,
            metrics,
            origins=settings.origins,
            proxies=settings.http_proxies,
        )
        # Given by a file, tokens are added and revoked while calls are running.
        file = options.get("HTTP_TOKENS_FILE")
        self._tokens_file = Path(file) if file is not None else None
        self.socket = TranscriptSocket(
            self.database, metrics, self.gate, per_client=settings.http_listeners_per_client
        )
        redactor = redactor_of(settings, self.orders, metrics)
        vcon_signer = vcon_signer_of(settings)
        self.completion = Completion(
            self.database,
            metrics,
            sinks=sinks,
            clock=_now,
            deliver=self._deliver,
            redactor=redactor,
            vcons=vcon_events_of(settings, vcon_signer),
        )
        self.speech = speech_of(settings)
        self.scheduler = Scheduler(
            self.database,
            self.providers,
            metrics,
            load=self.completion.load,
            on_done=self.completion.done,
            on_failed=self.completion.failed,
            clock=_now,
            speech=self.speech,
            guard=Guard(settings.hallucination_guard),
            packing=settings.transcription_packing,
            max_attempts=settings.transcription_attempts,
            retry_delay=settings.transcription_retry_delay.total_seconds(),
            circuit_failures=settings.transcription_circuit,
            conceal=redactor.conceal if redactor.kinds else None,
            fallback_after=settings.transcription_fallback_after.total_seconds()
            if settings.transcription_fallback_after is not None
            else None,
        )
        # People type card numbers, too: where anything is taken out, keys are not kept.
        masked = settings.dtmf_events == "keep" and bool(redactor.kinds)
        self.finisher = Finisher(
            # The other half is for whoever waits: calls, and recognisers.
            max(1, len(os.sched_getaffinity(0)) // 2),
            dtmf="mask" if masked else settings.dtmf_events,
            form=settings.recording_format,
        )
        keeping = safekeeping_of(settings)
        self.stores = Stores(keeping.store, settings.archive_options)
        self.custodian = Custodian(
            self.database,
            metrics,
            keeping,
            self.stores,
            clock=_now,
            node=self.database.node,
            shared=settings.recordings_shared,
        )
        self.archive = Archive(
            self.database,
            self.finisher,
            self.orders,
            metrics,
            sample_rate=self.provider.sample_rate,
            sinks=sinks,
            clock=_now,
            transcribe=self.scheduler.wake,
            redactor=redactor,
            keep_safe=keeping.wanted,
            eta=self.scheduler.eta_of_next,
        )
        self.media = MediaEngine(
            port_min=settings.rtp_port_min,
            port_max=settings.rtp_port_max,
            metrics=metrics,
            on_event=self._on_media,
            workers=settings.worker_count,
            rtp_timeout=settings.rtp_timeout.total_seconds(),
            rtp_source=settings.rtp_source,
            fast_path=settings.rtp_fast_path,
            ring=(settings.media_ring_mb << 20) * (settings.media_capture == "ring"),
            interfaces=settings.media_capture_interfaces,
        )
        self.sip = SipServer(
            token=lambda: secrets.token_hex(8),
            contact=self._contact,
            user_agent=f"siprec-bridge/{__version__}",
            authority=DigestAuthority(
                settings.sip_auth_realm,
                settings.sip_auth_users,
                secrets.token_bytes(32),
                algorithms=settings.sip_auth_algorithms,
            )
            if settings.sip_auth_users
            else None,
        )
        admission = Admission(
            settings.sip_allowed_sources,
            forbid=settings.sip_unknown_sources == "forbidden",
            names=settings.tls_client_names,
        )
        self.listener = Listener(self.sip, self._on_sip, metrics, admission, self._on_message)
        self.tls = (
            TlsServerContext(
                TlsFiles(
                    settings.tls_cert_path,
                    settings.tls_key_path,
                    settings.tls_client_ca_path,
                    settings.tls_sni_dir,
                )
            )
            if settings.tls_port is not None and settings.tls_cert_path and settings.tls_key_path
            else None
        )
        self.http_tls = (
            TlsServerContext(
                TlsFiles(settings.http_tls_cert_path, settings.http_tls_key_path, prefix="HTTP_")
            )
            if settings.http_tls_cert_path and settings.http_tls_key_path
            else None
        )
        self.live = (
            LiveDesk(
                self.database,
                self.media,
                self.socket,
                metrics,
                mode=settings.live_transcripts,
                wanted=Wanted(
                    url=settings.live_url,
                    max_lag=settings.live_max_lag.total_seconds(),
                    token=settings.live_token,
                    model=settings.live_model,
                ),
                choose=self.orders.choose,
                sinks=sinks if settings.live_to_sinks else [],
                clock=_now,
                policy_of=redactor.policy_of,
                masked=settings.live_redacted == "mask",
                processes=settings.live_process_limit,
            )
            if settings.live_transcripts != "off"
            else None
        )
        self.capacity = Capacity(settings.max_calls, settings.min_free_disk, settings.sip_call_rate)
        self.service = RecordingService(
            Desk(
                signalling=self.listener,
                media=self.media,
                database=self.database,
                archive=self.archive,
                metrics=metrics,
                policy=media_policy_of(settings),
                recordings=settings.recordings,
                sinks=sinks,
                clock=_now,
                address_for=self._address_for,
                receive_at=lambda peer: settings.rtp_host_for(peer.local_host, peer.zone),
                certificate=certificate_of(settings),
                live=self.live,
            ),
            self.capacity,
            siprec_only=settings.non_siprec_calls == "refuse",
        )
        self.ladder = LadderKeeper(self.database, session_of=self.service.session_of, clock=_now)
        node = None if settings.recordings_shared else self.database.node
        self.retention = Retention(
            self.database,
            metrics,
            Keep(
                audio=settings.keep_audio,
                audio_size=settings.keep_audio_size,
                sessions=settings.keep_sessions,
                events=settings.keep_events,
            ),
            clock=_now,
            node=node,
        )
        stored = StoredAudio(
            self.database,
            self.stores,
            clock=_now,
            place=keeping.store.place if keeping.store is not None else None,
        )
        eraser = Eraser(
            self.database, metrics, self.retention, stored, sinks=sinks, clock=_now, node=node
        )
        late = LateRedaction(
            self.database, metrics, redactor, stored, sinks=sinks, clock=_now, node=node
        )
        self.api = Api(
            self.database,
            metrics,
            self.health,
            self.service,
            self.retention,
            self.gate,
            self.orders,
            self.scheduler,
            eraser,
            late,
            self.stores,
            self.relays,
            open_metrics=settings.http_open_metrics,
            secure=self.http_tls is not None,
            public_url=settings.http_public_url,
            vcon_inline_max=settings.vcon_inline_max,
            vcon_signer=vcon_signer,
        )
        self.front = Front(websocket=self.socket.connection, http=self.api.connection)

    async def start(self, parts: contextlib.AsyncExitStack) -> None:
        """Start everything; `parts` stops it in the opposite order. Raises ConfigurationError."""
        settings = self.settings
        self._make_folders()
        try:
            await self.database.start()
        except StoreError as error:
            raise ConfigurationError("DATABASE_URL", str(error)) from error
        parts.push_async_callback(self.database.stop)
        for provider in self.providers:
            parts.push_async_callback(provider.close)
        parts.push_async_callback(self.finisher.stop)
        unfinished = await left_behind(self.database)

        if self.broker is not None:
            parts.push_async_callback(self.broker.close)
        for sink in self.webhooks:
            parts.push_async_callback(sink.close)
        for relay in self.relays:
            self.database.on_commit(relay.wake)
            self._run(parts, relay.run, f"relay to {relay.name}")
        tls = self.http_tls.context if self.http_tls is not None else None
        await self.socket.start(
            lambda: self.front.listen(settings.http_host, settings.http_port, tls)
        )
        parts.push_async_callback(self.socket.stop)
        await self.api.start()
        parts.push_async_callback(self.api.stop)

        self._run(parts, self.scheduler.run, "scheduler")
        try:
            await self.media.start()
        except MediaUnavailable as error:
            raise ConfigurationError("media", str(error)) from error
        if 2 * settings.max_calls > self.media.room:
            log.warning(
                "media.too_little_room", streams=self.media.room,
                streams_with_rtcp_mux=self.media.room_muxed, max_calls=settings.max_calls,
                cause="a call has two streams: widen RTP_PORT_MIN to RTP_PORT_MAX, or raise the "
                "limit of open files (LimitNOFILE, ulimit -n), three a stream and worker, two "
                "with rtcp-mux",
            )  # fmt: skip
        parts.push_async_callback(self.media.stop)
        if self.live is not None:
            self._run(parts, self.live.run, "live transcripts")
        self._run(parts, self._keep_house, "housekeeping")
        self._run(parts, self._watch_lag, "lag")
        self._run(parts, self._watch_access, "access")
        self._run(parts, self._watch_clock, "clock")
        self._run(parts, self.retention.run, "retention")
        self._run(parts, self.custodian.run, "archive")
        self._run(parts, partial(recover, unfinished, self.archive, _now), "recovery")

        self._run(parts, self.ladder.run, "ladder")
        parts.push_async_callback(self.listener.stop)
        await self.listener.start(
            settings.sip_host,
            udp_ports=settings.sip_udp_ports,
            tcp_ports=settings.sip_tcp_ports,
            tls_port=settings.tls_port,
            tls=self.tls,
        )
        parts.push_async_callback(self.service.stop, settings.shutdown_timeout.total_seconds())
        self._register_checks()

    def _run(
        self,
        parts: contextlib.AsyncExitStack,
        work: Callable[[], Coroutine[None, None, None]],
        name: str,
    ) -> None:
        """Own a part that runs as long as the bridge; one that fails by our fault starts anew."""

        async def keep_running() -> None:
            while True:
                try:
                    await work()
                    return
                except Exception:  # it must not end the calls that are being recorded
                    log.exception("bridge.part_failed", part=name, again_in_s=_RESTART_S)
                await asyncio.sleep(_RESTART_S)

        task = asyncio.create_task(keep_running(), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        parts.push_async_callback(end)

    def _make_folders(self) -> None:
        for setting, folder in (
            ("DATA_DIR", self.settings.data_dir),
            ("RECORDING_DIR", self.settings.recordings),
        ):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(f"{setting}={folder}", f"{error.strerror}") from error

    def _on_sip(self, event: Output) -> None:
        self.service.on_sip(event)

    def _on_message(self, data: bytes, peer: Peer, sent: bool) -> None:
        self.ladder.note(data, peer, sent=sent)

    def _on_media(self, event: MediaEvent) -> None:
        self.service.on_media(event)
        fields = {
            "session_id": event.session_id,
            "sip_call_id": self.service.call_id_of(event.session_id),
            "label": event.label,
        }
        match event.name:
            case "silent":
                log.warning("stream.silent", seconds=event.seconds, **fields)
            case "not_authentic":
                log.warning("stream.not_authentic", **fields)  # once; the metric counts
            case "handshake_failed":
                log.warning(
                    "stream.handshake_failed", cause=event.cause, **fields
                )  # once, likewise
            case "keyed":
                log.info("stream.keyed", suite=event.cause, **fields)
            case "stranger":
                log.warning("stream.stranger", source=event.cause, **fields)  # once, likewise
            case "learned":
                log.info("stream.learned", source=event.cause, **fields)
            case "interrupted":
                log.error("stream.interrupted", seconds=event.seconds, **fields)
            case "lost":
                log.error("stream.lost", cause=event.cause, **fields)
            case "rtcp_lost":
                log.warning("stream.rtcp_lost", cause=event.cause, **fields)
            case "write_failed":
                log.error("stream.not_written", cause=event.cause, **fields)
            case "written_again" if event.cause:
                log.error("stream.written_again", cause=event.cause, **fields)
            case _:
                log.info(f"stream.{event.name}", **fields)

    def _deliver(self) -> None:
        for relay in self.relays:
            relay.wake()

    def _address_for(self, peer: Peer) -> str:
        return self.settings.announced_for(peer.local_host)

    def _contact(self, peer: Peer) -> str:
        """RFC 7866 §6.1.2: `+sip.srs` says that we are a recording server."""
        address = self._address_for(peer)
        host = f"[{address}]" if ":" in address else address
        return f"<sip:srs@{host}:{peer.local_port};transport={peer.transport}>;+sip.srs"

    def _register_checks(self) -> None:
        async def sip() -> str | None:
            return None if self.listener.endpoints else "SIP is not bound"

        async def media() -> str | None:
            return None if self.media.alive else "all media workers are down"

        async def disk() -> str | None:
            full = self.capacity.exhausted_by(0) == "disk"
            return f"less than {self.capacity.min_free_disk:,} octets free" if full else None

        async def broker() -> str | None:
            assert self.broker is not None
            return None if self.broker.connected else self.broker.trouble or "not connected"

        self.health.register("sip", sip)
        self.health.register("media", media)
        self.health.register("database", self.database.unwritable)
        self.health.register("disk", disk)
        # What follows can be away: calls are taken, and jobs and events wait on disk.
        # One that is switched off is no part that does not work.
        for provider in [one for one in self.providers if not is_off(one)]:
            name = "recogniser" if provider is self.provider else f"recogniser {provider.name}"
            self.health.register(name, partial(self.scheduler.trouble, provider.name), vital=False)
        if self.broker is not None:
            self.health.register("amqp", broker, vital=False)
        for relay in self.relays:
            if relay.name != "amqp":  # that one is known to be away before there is an event
                self.health.register(relay.name, partial(_trouble_of, relay), vital=False)

    async def _watch_lag(self) -> None:
        """See how late the loop is with a thing that it was to do at a certain time."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_CHECK_S
            await asyncio.sleep(_LAG_CHECK_S)
            # Up at once, down by halves: the backlog is not gone with the first timely turn.
            self.capacity.lag = max(loop.time() - due, self.capacity.lag / 2)
            self.metrics.loop_lag_seconds.set(self.capacity.lag)

    async def _keep_house(self) -> None:
        while True:
            try:
                usage = await asyncio.to_thread(shutil.disk_usage, self.settings.recordings)
                free = usage.free
            except OSError as error:  # not mounted any more, say: nothing can be recorded there
                log.error("recordings.unreachable", cause=str(error))
                free = 0
            self.metrics.spool_disk_free_bytes.set(free)
            self.capacity.free_disk = free
            await self.database.keep_reserve()
            for tls in (self.tls, self.http_tls):
                if tls is not None:
                    await asyncio.to_thread(tls.reload)
            await asyncio.sleep(_HOUSEKEEPING_S)

    async def _watch_clock(self) -> None:
        """Somebody sets the wall clock: what waits for a time by it must not wait for that."""
        ahead = time.time() - time.monotonic()
        overdue = False
        while True:
            before, ahead = ahead, time.time() - time.monotonic()
            if abs(ahead - before) > _STEP_S:
                log.warning("clock.stepped", seconds=round(ahead - before, 3))
                overdue = overdue or ahead < before
            if overdue:
                try:
                    count = await self.database.write(partial(rewind, now=_now()))
                except StoreError as error:
                    log.error("clock.not_rewound", cause=str(error))
                else:
                    overdue = False
                    log.info("clock.rewound", due=count)
                    self.scheduler.wake()
                    self._deliver()
            await asyncio.sleep(_CLOCK_CHECK_S)

    async def _watch_access(self) -> None:
        """Take over a changed file of tokens, and end what is not allowed any more."""
        tokens, said = self.settings.http_tokens, None
        while True:
            await asyncio.sleep(_ACCESS_CHECK_S)
            if self._tokens_file is not None:
                try:
                    found = await asyncio.to_thread(tokens_of, self._tokens_file)
                except ConfigurationError as error:
                    if str(error) != said:
                        said = str(error)
                        log.error("access.not_reloaded", cause=said, effect="all stays as it was")
                else:
                    said = None
                    if found != tokens:
                        tokens = found
                        self.gate.replace(tokens)
                        log.info("access.reloaded", clients=[one.name for one in tokens])
            await self.socket.recheck()


async def _trouble_of(relay: Relay) -> str | None:
    return relay.trouble


def _now() -> datetime:
    return datetime.now(UTC)
