"""Calls over TLS: server and mutual, renewed certificates, and peers that do not fit."""

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest

from harness.bridge import Bridge, eventually, listening, running_bridge
from harness.calls import finals, tones
from harness.certificates import Authority
from harness.recognisers import recogniser
from siprec_bridge.caller import CallError, CallPlan, CallReport, parse_target, place_call
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.signalling import TlsFiles, TlsServerContext

pytestmark = pytest.mark.peer


def trusting(authority: Authority, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client that takes this authority's certificates, and shows its own where it has one."""
    context = ssl.create_default_context(cafile=authority.ca)
    if own is not None:
        context.load_cert_chain(*own)
    return context


def address(bridge: Bridge) -> tuple[str, int]:
    places = bridge.ready["sip_tls"]
    assert isinstance(places, list)
    host, _, port = str(places[0]).rpartition(":")
    return host, int(port)


async def call(bridge: Bridge, context: ssl.SSLContext) -> CallReport:
    host, port = address(bridge)
    plan = CallPlan(parse_target(f"sips:{host}:{port}"), tones(0.2), rate=20.0, tls=context)
    return await place_call(plan)


async def test_a_call_over_tls_is_recorded(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=speaks, TLS_PORT="0",
            TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key),
        ) as bridge,
        listening(bridge) as events,
    ):  # fmt: skip
        report = await call(bridge, trusting(authority))
        (final,) = await finals(bridge, events)
        _, metrics = await bridge.get("/metrics")

    assert report.problems == ()
    assert len(final["data"]["utterances"]) == 2
    assert 'siprec_sip_requests_total{method="INVITE",transport="tls"} 1.0' in metrics


async def ask(bridge: Bridge, context: ssl.SSLContext) -> bytes:
    """Connect, send something, and read a byte: TLS 1.3 refuses clients only then."""
    host, port = address(bridge)
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname="bridge"
    )
    try:
        writer.write(b"\r\n\r\n")
        return await reader.readexactly(1)
    finally:
        writer.close()


async def test_with_client_cas_only_peers_with_their_certificate_get_in(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    certificate, key = authority.sign("bridge")
    async with running_bridge(
        tmp_path / "data", TLS_PORT="0", TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key),
        TLS_CLIENT_CA_PATH=str(authority.ca),
    ) as bridge:  # fmt: skip
        own = authority.sign("sbc")
        known = await call(bridge, trusting(authority, own))
        assert await ask(bridge, trusting(authority, own)) == b"\r"  # the answer to a ping
        for foreign in (None, stranger.sign("sbc")):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(bridge, trusting(authority, foreign))

    assert known.status == 200


async def test_our_caller_does_not_take_a_certificate_of_another_authority(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    certificate, key = authority.sign("bridge")
    async with running_bridge(
        tmp_path / "data", TLS_PORT="0", TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key)
    ) as bridge:
        with pytest.raises(CallError, match="certificate verify failed"):
            await call(bridge, trusting(stranger))


async def test_a_peer_that_never_finishes_its_handshake_stalls_nobody(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    async with running_bridge(
        tmp_path / "data", TLS_PORT="0", TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key)
    ) as bridge:
        stuck = [await asyncio.open_connection(*address(bridge)) for _ in range(20)]

        report = await call(bridge, trusting(authority))
        for _, writer in stuck:
            writer.close()

    assert report.status == 200


def test_a_renewed_certificate_is_taken_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")

    def install(serial: int) -> None:
        certificate, key = authority.sign("bridge", serial=serial)
        shutil.copyfile(certificate, files.certificate)
        shutil.copyfile(key, files.key)

    install(1)
    tls = TlsServerContext(files)
    unchanged = tls.reload()
    install(2)
    renewed = tls.reload()
    shown = asyncio.run(serial_shown(tls.context, authority))
    files.key.write_text("no key")
    broken = tls.reload()
    still = asyncio.run(serial_shown(tls.context, authority))

    assert (unchanged, renewed, broken) == (False, True, False)
    assert (shown, still) == ("02", "02")


async def serial_shown(context: ssl.SSLContext, authority: Authority) -> str:
    """The serial number of the certificate that a client gets to see."""
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(authority), server_hostname="bridge"
        )
        certificate = writer.get_extra_info("peercert")
        writer.close()
    return str(certificate["serialNumber"])


def test_files_that_do_not_fit_stop_the_start_with_their_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, _ = authority.sign("bridge")
    _, other_key = authority.sign("other")

    for files in (
        TlsFiles(certificate, other_key),
        TlsFiles(tmp_path / "none.pem", other_key),
        TlsFiles(certificate, certificate),
    ):
        with pytest.raises(ConfigurationError, match=r"^TLS_CERT_PATH="):
            TlsServerContext(files)


async def test_a_plain_tcp_client_on_the_tls_port_is_hung_up_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    async with running_bridge(
        tmp_path / "data", TLS_PORT="0", TLS_CERT_PATH=str(certificate), TLS_KEY_PATH=str(key)
    ) as bridge:
        reader, writer = await asyncio.open_connection(*address(bridge))
        writer.write(b"OPTIONS sip:x SIP/2.0\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await eventually(lambda: bridge.process.returncode is None, "a living bridge", bridge)

    assert b"SIP/2.0" not in answer
