"""The whole metric catalogue. An attribute is a metric's name without the prefix `siprec_`.

No label ever holds a call, a number or a peer: the count of series does not grow with traffic.
A metric whose label values are all known shows each from the start, so that a rate over the
first event is not lost and a panel is never empty.
"""

from collections.abc import Sequence
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from siprec_bridge import __version__
from siprec_bridge.siprec import FindingCode, Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SESSION_OUTCOMES = ("completed", "abandoned", "recovered", "failed")
JOB_OUTCOMES = ("done", "retried", "failed")
DELIVERY_RESULTS = ("delivered", "retried", "returned", "parked")
RUN_STATUSES = ("success", "error", "timeout")
DOUBTS = ("no_speech", "low_confidence", "compression", "repeated", "outside_speech")

_SECONDS_OF_A_RUN = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
_SECONDS_OF_A_CALL = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_SECONDS_OF_A_COMMIT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_SECONDS_OF_A_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SECONDS_OF_LATENESS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SECONDS_OF_LIVE = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 20)
_LOSS_RATIOS = (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_MOS = (1, 1.5, 2, 2.5, 3, 3.5, 3.8, 4, 4.2, 4.3, 4.5)
_BYTES_OF_TEMP_FILES = (1e4, 1e5, 1e6, 5e6, 1e7, 5e7, 1e8, 5e8, 1e9)


class Metrics:
    """One bridge's metrics in a registry of their own; safe to use from any thread."""

    def __init__(self) -> None:
        # Of the whole process: else a gauge beside each series, with the time of its first value.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        # Signalling
        self.sip_requests_total = counter(
            "sip_requests", "SIP requests received", ("transport", "method")
        )
        self.sip_responses_total = counter(
            "sip_responses", "final SIP responses sent", ("method", "status")
        )
        self.sip_malformed_total = counter(
            "sip_malformed",
            "SIP messages that could not be parsed or were too large",
            ("transport",),
        )
        self.sip_unadmitted_total = counter(
            "sip_unadmitted",
            "messages and connections from sources, or with certificates, not allowed",
            ("transport",),
        )

        self.sip_connections_opened_total = counter(
            "sip_connections_opened",
            "tries to open a connection for messages whose own was gone, by their result",
            ("transport", "result"),
        )
        self.sip_connections_crowded_out_total = counter(
            "sip_connections_crowded_out",
            "SIP connections that were closed to make room, silent the longest of all",
        )
        self.sip_undelivered_total = counter(
            "sip_undelivered",
            "SIP messages of ours whose connection was gone, with no other to be had",
            ("transport",),
        )

        for transport in ("tcp", "tls"):
            self.sip_undelivered_total.labels(transport=transport)
            for result in ("opened", "reused", "failed"):
                self.sip_connections_opened_total.labels(transport=transport, result=result)

        # Recording
        self.sessions_total = counter("sessions", "recording sessions ended", ("outcome",))
        self.calls_turned_away_total = counter(
            "calls_turned_away",
            "new calls that were not taken, by what was in the way",
            ("reason",),
        )
        for reason in ("draining", "capacity", "disk", "overload", "rate", "not_siprec"):
            self.calls_turned_away_total.labels(reason=reason)
        self.sessions_active = gauge("sessions_active", "sessions being recorded")
        self.loop_lag_seconds = gauge(
            "loop_lag_seconds", "how late the bridge is; above 0.4 it turns new calls away"
        )
        self.session_duration_seconds = histogram(
            "session_duration_seconds", "length of a recording session", _SECONDS_OF_A_CALL
        )
        for outcome in SESSION_OUTCOMES:
            self.sessions_total.labels(outcome=outcome)
        self.sessions_assured_total = counter(
            "sessions_assured", "recording sessions, by how much of them was recorded", ("verdict",)
        )
        for verdict in get_args(Verdict):
            self.sessions_assured_total.labels(verdict=verdict)
        self.assurance_findings_total = counter(
            "assurance_findings", "recording sessions that were not complete, by reason", ("code",)
        )
        for code in get_args(FindingCode):
            self.assurance_findings_total.labels(code=code)
        self.audio_expected_seconds_total = counter(
            "audio_expected_seconds", "audio that streams were to bring"
        )
        self.audio_captured_seconds_total = counter(
            "audio_captured_seconds", "audio that was recorded of what streams were to bring"
        )

        self.recordings_bytes = gauge("recordings_bytes", "audio of finished sessions")
        self.retention_deleted_total = counter(
            "retention_deleted", "deleted by age, for want of room, or on request", ("what",)
        )
        for what in ("audio", "session", "event"):
            self.retention_deleted_total.labels(what=what)

        self.archive_pending = gauge(
            "archive_pending",
            "sessions whose files are to be kept, or to go from stores",
            ("what",),
        )
        self.archive_pending_bytes = gauge(
            "archive_pending_bytes", "octets of the files that are to be kept"
        )
        self.archive_oldest_age_seconds = gauge(
            "archive_oldest_age_seconds",
            "how long the first session has waited whose files are to be kept",
        )
        self.archive_failing = gauge(
            "archive_failing", "sessions whose latest try to keep, drop or delete files failed"
        )
        self.archive_tries_total = counter(
            "archive_tries", "tries to keep, drop or delete a session's files", ("what", "result")
        )
        self.archive_uploaded_bytes_total = counter(
            "archive_uploaded_bytes", "octets that were sent to the store and proven to be there"
        )
        for what in ("keep", "delete"):
            self.archive_pending.labels(what=what)
        for what in ("keep", "drop", "delete"):
            for result in ("done", "failed"):
                self.archive_tries_total.labels(what=what, result=result)

        # Media
        self.streams_total = counter("streams", "streams recorded to their end")
        self.streams_with_loss_total = counter(
            "streams_with_loss", "streams recorded to their end that lost a packet or more"
        )
        self.stream_pauses_total = counter(
            "stream_pauses", "times that recording of a stream was paused", ("cause",)
        )
        for cause in ("hold", "operator", "mute"):
            self.stream_pauses_total.labels(cause=cause)
        self.stream_loss_ratio = histogram(
            "stream_loss_ratio", "share of its packets that a stream lost", _LOSS_RATIOS
        )
        self.stream_mos = histogram(
            "stream_mos", "listening quality of a stream by codec and loss (E-model)", _MOS
        )
        self.streams_active = gauge("streams_active", "streams being received")
        self.rtp_packets_total = counter("rtp_packets", "RTP packets received")
        self.rtp_octets_total = counter("rtp_octets", "octets of RTP packets received, with header")
        self.rtp_packets_lost_total = counter("rtp_packets_lost", "RTP packets that never came")
        self.rtp_packets_duplicate_total = counter(
            "rtp_packets_duplicate", "RTP packets that came again"
        )
        self.rtp_packets_malformed_total = counter(
            "rtp_packets_malformed", "datagrams on an RTP port that are no RTP"
        )
        self.rtp_packets_stranger_total = counter(
            "rtp_packets_stranger",
            "datagrams on an RTP or RTCP port from a source not its stream's",
        )
        self.rtp_packets_undecoded_total = counter(
            "rtp_packets_undecoded", "RTP packets that their codec refused: silence in the audio"
        )
        self.srtp_packets_unauthenticated_total = counter(
            "srtp_packets_unauthenticated",
            "SRTP and SRTCP packets dropped: the negotiated keys do not open them",
        )
        self.dtls_handshakes_total = counter(
            "dtls_handshakes",
            "DTLS-SRTP handshakes that ended: with keys (done), or without (failed)",
            ["outcome"],
        )
        self.rtp_kernel_drops_total = counter(
            "rtp_kernel_drops", "datagrams that the kernel dropped for want of room"
        )
        self.media_workers = gauge("media_workers", "media worker processes that there are to be")
        self.media_workers_alive = gauge("media_workers_alive", "media worker processes running")
        self.media_worker_restarts_total = counter(
            "media_worker_restarts", "media worker processes that died and were started again"
        )
        self.media_sweep_lateness_seconds = histogram(
            "media_sweep_lateness_seconds",
            "how late a media worker was with a sweep of its sockets",
            _SECONDS_OF_LATENESS,
        )
        self.media_worker_busy_ratio = gauge(
            "media_worker_busy_ratio", "share of a core that a media worker uses", ("worker",)
        )
        self.spool_disk_free_bytes = gauge(
            "spool_disk_free_bytes", "room left on the file system of the recordings"
        )

        # Transcription
        self.whisper_cli_duration_seconds = histogram(
            "whisper_cli_duration_seconds",
            "wall time of a recogniser run",
            _SECONDS_OF_A_RUN,
            ("model", "status"),
        )
        self.whisper_runs_total = counter(
            "whisper_runs", "recogniser runs by what became of them", ("model", "reason")
        )
        self.whisper_timeouts_total = counter(
            "whisper_timeouts", "recogniser runs ended by WHISPER_TIMEOUT", ("model",)
        )
        self.whisper_temp_file_bytes = histogram(
            "whisper_temp_file_bytes", "temporary files of a recogniser run", _BYTES_OF_TEMP_FILES
        )
        self.whisper_output_format_total = counter(
            "whisper_output_format", "recogniser outputs read, by format", ("format",)
        )
        self.whisper_runs_active = gauge("whisper_runs_active", "recogniser runs under way")
        self.vad_audio_seconds_total = counter(
            "vad_audio_seconds",
            "audio that a voice detector heard: kept for the recogniser, or cut as silence",
            ("verdict",),
        )
        self.packed_legs_total = counter(
            "packed_legs",
            "legs that shared a file: heard together, or again alone, since it was not clear whose "
            "the words are or they were doubtful",
            ("heard",),
        )
        for way in ("together", "again"):
            self.packed_legs_total.labels(heard=way)
        self.doubtful_segments_total = counter(
            "doubtful_segments",
            "segments that a recogniser gave and that were hardly said, by reason",
            ("reason",),
        )
        for verdict in ("kept", "cut"):
            self.vad_audio_seconds_total.labels(verdict=verdict)
        for reason in DOUBTS:
            self.doubtful_segments_total.labels(reason=reason)
        self.recogniser_available = gauge(
            "recogniser_available",
            "1: the default recogniser can be run and works; 0: not; NaN: switched off",
        )
        self.jobs_total = counter(
            "jobs", "transcription jobs, by what became of a try", ("outcome",)
        )
        self.jobs_backlog = gauge("jobs_backlog", "transcription jobs waiting or running")
        self.jobs_backlog_audio_seconds = gauge(
            "jobs_backlog_audio_seconds", "audio of the jobs waiting or running"
        )
        self.jobs_backlog_eta_seconds = gauge(
            "jobs_backlog_eta_seconds",
            "until these are done at the present pace; NaN: no run has shown it yet",
        )
        self.vendor_available = gauge(
            "vendor_available",
            "1: this recogniser can be run and works; 0: not; NaN: switched off",
            ("vendor",),
        )
        self.vendor_circuit_open = gauge(
            "vendor_circuit_open", "1: it fails at known good audio; only probes run", ("vendor",)
        )
        self.vendor_probes_total = counter(
            "vendor_probes", "runs with known good audio, by their result", ("vendor", "result")
        )
        self.vendor_runs_active = gauge("vendor_runs_active", "its runs under way", ("vendor",))
        self.vendor_pace_ratio = gauge(
            "vendor_pace_ratio", "seconds of audio that one of its runs does a second", ("vendor",)
        )
        self.fallbacks_total = counter(
            "fallbacks", "jobs that one vendor gave up and another got", ("vendor", "to")
        )
        self.jobs_failed = gauge("jobs_failed", "jobs that were given up and wait for an operator")
        self.transcription_delay_seconds = histogram(
            "transcription_delay_seconds",
            "from the end of a call to its stored transcript",
            _SECONDS_OF_A_RUN,
        )
        self.redactions_total = counter(
            "redactions", "things that were taken out of what was said", ("kind",)
        )
        self.audio_redacted_seconds_total = counter(
            "audio_redacted_seconds", "seconds of audio that were covered for what was taken out"
        )
        self.erasures_total = counter(
            "erasures", "sessions that a person was erased from, by how much of them", ("what",)
        )
        for what in ("person", "session"):
            self.erasures_total.labels(what=what)
        for kind in ("card", "cvv", "email", "phone", "id", "iban"):
            self.redactions_total.labels(kind=kind)
        for outcome in JOB_OUTCOMES:
            self.jobs_total.labels(outcome=outcome)

        # Live transcripts
        self.live_streams = gauge("live_streams", "streams that a live recogniser hears now")
        self.live_lines_total = counter(
            "live_lines",
            "live lines told: while an utterance grows, and once it is over",
            ("kind",),
        )
        self.live_latency_seconds = histogram(
            "live_latency_seconds",
            "from when the last of a live line was said to its event",
            _SECONDS_OF_LIVE,
            ("kind",),
        )
        for kind in ("growing", "settled"):
            self.live_lines_total.labels(kind=kind)
            self.live_latency_seconds.labels(kind=kind)
        self.live_lines_dropped_total = counter(
            "live_lines_dropped", "live lines not told, since the bridge or its database was behind"
        )
        self.live_audio_seconds_total = counter(
            "live_audio_seconds",
            "audio for live recognisers: sent, or skipped as they were away or behind",
            ("outcome",),
        )
        for outcome in ("sent", "skipped"):
            self.live_audio_seconds_total.labels(outcome=outcome)
        self.live_behind_total = counter(
            "live_behind", "times that a live recogniser was too far behind, and skipped audio"
        )
        self.live_packets_late_total = counter(
            "live_packets_late", "RTP packets that came too late for live lines; they are recorded"
        )
        self.live_packets_undecoded_total = counter(
            "live_packets_undecoded", "RTP packets that their codec refused: silence in live audio"
        )
        self.live_connections_total = counter(
            "live_connections", "tries to have a stream heard live, by their result", ("result",)
        )
        for result in ("ready", "full", "failed"):
            self.live_connections_total.labels(result=result)
        self.live_recogniser_available = gauge(
            "live_recogniser_available",
            "1: the live recogniser took the latest stream; 0: not, or nobody has asked yet",
        )
        self.live_process_restarts_total = counter(
            "live_process_restarts", "times that a live process died and was started again"
        )
        self.live_process_busy_ratio = gauge(
            "live_process_busy_ratio", "share of a core that a live process uses", ("process",)
        )

        # Delivery
        self.deliveries_total = counter(
            "deliveries", "events handed to a sink, by what became of the try", ("sink", "result")
        )
        self.outbox_backlog = gauge("outbox_backlog", "events a sink has not confirmed", ("sink",))
        self.outbox_oldest_age_seconds = gauge(
            "outbox_oldest_age_seconds",
            "age of the oldest event that a sink has not confirmed",
            ("sink",),
        )
        self.outbox_parked = gauge(
            "outbox_parked", "events a sink gave up, which wait for an operator", ("sink",)
        )
        self.webhook_answers_total = counter(
            "webhook_answers", "requests to webhooks, by how they were answered", ("sink", "answer")
        )
        self.webhook_seconds = histogram(
            "webhook_seconds", "from a request to its answer", _SECONDS_OF_A_REQUEST, ("sink",)
        )
        self.amqp_connected = gauge("amqp_connected", "1: the broker is connected")
        self.amqp_blocked = gauge(
            "amqp_blocked", "1: the broker takes nothing, for its memory or disk alarm"
        )
        self.websocket_listeners = gauge("websocket_listeners", "WebSocket listeners connected")
        self.websocket_events_sent_total = counter(
            "websocket_events_sent", "events written to WebSocket listeners"
        )
        self.websocket_events_missed_total = counter(
            "websocket_events_missed", "events that slow listeners were cut off from"
        )
        self.websocket_passing_dropped_total = counter(
            "websocket_passing_dropped", "growing live lines kept from listeners who are slow"
        )

        # Access
        self.http_refused_total = counter(
            "http_refused", "HTTP requests and WebSockets that were not let in", ("reason",)
        )
        for reason in ("none", "token", "limited", "ticket", "scope", "origin", "listeners"):
            self.http_refused_total.labels(reason=reason)

        # Store and process
        self.database_commit_seconds = histogram(
            "database_commit_seconds", "duration of a commit", _SECONDS_OF_A_COMMIT
        )
        self.build_info = gauge("build_info", "1, with the version as label", ("version",))
        self.build_info.labels(version=__version__).set(1)

    def preset(self, *, model: str, sinks: Sequence[str], vendors: Sequence[str] = ()) -> None:
        """Show the series of the configured recognisers and sinks before anything happens."""
        for vendor in vendors:
            self.vendor_available.labels(vendor=vendor)
            self.vendor_circuit_open.labels(vendor=vendor)
            self.vendor_runs_active.labels(vendor=vendor)
            for result in ("works", "fails"):
                self.vendor_probes_total.labels(vendor=vendor, result=result)
            for other in vendors:
                if other != vendor:
                    self.fallbacks_total.labels(vendor=vendor, to=other)
        self.whisper_timeouts_total.labels(model=model)
        self.whisper_runs_total.labels(model=model, reason="ok")
        for method in ("INVITE", "BYE"):
            self.sip_responses_total.labels(method=method, status=200)
        for status in RUN_STATUSES:
            self.whisper_cli_duration_seconds.labels(model=model, status=status)
        for sink in sinks:
            self.outbox_backlog.labels(sink=sink)
            self.outbox_oldest_age_seconds.labels(sink=sink)
            self.outbox_parked.labels(sink=sink)
            for result in DELIVERY_RESULTS:
                self.deliveries_total.labels(sink=sink, result=result)

    def render(self) -> bytes:
        """The text that Prometheus scrapes; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"siprec_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"siprec_{name}", what, labels, registry=self.registry)

    def _histogram(
        self, name: str, what: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(f"siprec_{name}", what, labels, buckets=buckets, registry=self.registry)
