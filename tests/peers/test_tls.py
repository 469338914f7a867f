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
from harness.src import new_server, request
from siprec_bridge.caller import CallError, CallPlan, CallReport, parse_target, place_call
from siprec_bridge.doctor import examine_tls
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import load
from siprec_bridge.signalling import Admission, Listener, TlsFiles, TlsServerContext
from siprec_bridge.sip import Output
from siprec_bridge.telemetry import Metrics

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


async def serial_shown(
    context: ssl.SSLContext,
    authority: Authority,
    name: str = "bridge",
    own: tuple[Path, Path] | None = None,
) -> str:
    """The serial number of the certificate that a client gets to see who asks for this name."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(authority, own), server_hostname=name
        )
        certificate = writer.get_extra_info("peercert")
        try:
            await reader.readexactly(1)  # TLS 1.3 refuses clients only then
        finally:
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


async def test_a_client_gets_the_certificate_of_the_name_that_it_asks_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge", serial=1)
    folder = tmp_path / "sni"
    folder.mkdir()

    def install(file: str, name: str, serial: int) -> None:
        for source, suffix in zip(
            authority.sign(name, serial=serial), (".crt", ".key"), strict=True
        ):
            shutil.copyfile(source, folder / f"{file}{suffix}")

    install("a.example.com", "a.example.com", 2)
    install("_wildcard.example.com", "*.example.com", 3)
    tls = TlsServerContext(TlsFiles(certificate, key, sni=folder))

    async def shown(*names: str) -> list[str]:
        return [await serial_shown(tls.context, authority, name) for name in names]

    at_start = await shown("bridge", "a.example.com", "A.Example.com", "b.example.com")
    install("a.example.com", "a.example.com", 4)
    install("new.example.org", "new.example.org", 5)
    (folder / "broken.example.org.crt").write_text("no certificate")
    taken = tls.reload()
    renewed = await shown("bridge", "a.example.com", "b.example.com", "new.example.org")
    (folder / "a.example.com.key").write_text("no key")
    (folder / "new.example.org.crt").unlink()
    broken = tls.reload()
    kept = await shown("a.example.com")

    assert at_start == ["01", "02", "02", "03"]
    assert (taken, renewed) == (True, ["01", "04", "03", "05"])
    assert (broken, kept) == (False, ["04"])
    assert set(tls.certificates) == {"", "a.example.com", "*.example.com"}


def test_a_pair_for_a_name_that_does_not_fit_stops_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("bridge")
    folder = tmp_path / "sni"
    folder.mkdir()
    shutil.copyfile(certificate, folder / "a.example.com.crt")

    with pytest.raises(ConfigurationError, match=r"^TLS_SNI_DIR=.*a\.example\.com\.key"):
        TlsServerContext(TlsFiles(certificate, key, sni=folder))


async def test_new_client_cas_are_taken_over(tmp_path: Path) -> None:
    before, after = Authority(tmp_path / "before"), Authority(tmp_path / "after")
    ca = tmp_path / "clients.pem"
    shutil.copyfile(before.ca, ca)
    tls = TlsServerContext(TlsFiles(*before.sign("bridge"), ca))

    async def let_in(client: Authority) -> bool:
        try:
            await serial_shown(tls.context, before, own=client.sign("sbc"))
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return False
        return True

    first = (await let_in(before), await let_in(after))
    ca.write_text(after.ca.read_text() + "\n")
    tls.reload()

    assert first == (True, False)
    assert (await let_in(before), await let_in(after)) == (False, True)


@pytest.mark.parametrize(
    ("san", "admitted"),
    [
        ("DNS:sbc.example.com", True),
        ("DNS:SBC.Example.COM", True),
        ("DNS:one.siprec.example.org", True),
        ("DNS:two.one.siprec.example.org", False),
        ("DNS:siprec.example.org", False),
        ("URI:sip:sbc.example.com", True),
        ("URI:sip:somebody@sbc.example.com", False),
        ("URI:https://sbc.example.com", False),
        ("DNS:*.example.com", False),
        ("URI:sips:sbc.example.com", False),  # RFC 5922 §7.1 knows sip alone
        ("DNS:*.siprec.example.org", False),
        ("", True),  # the common name, for want of others
        ("DNS:other.example.com", False),
    ],
)
async def test_only_clients_whose_certificate_is_for_a_name_of_ours_get_in(
    tmp_path: Path, san: str, admitted: bool
) -> None:
    authority = Authority(tmp_path / "ca")
    tls = TlsServerContext(TlsFiles(*authority.sign("bridge"), authority.ca))
    admission = Admission(names=["sbc.example.com", "*.siprec.example.org"])
    events: list[Output] = []
    metrics = Metrics()
    listener = Listener(new_server(), events.append, metrics, admission)
    await listener.start(["127.0.0.1"], udp_ports=[], tcp_ports=[], tls_port=0, tls=tls)
    own = trusting(authority, authority.sign("sbc.example.com", san=san))

    (place,) = listener.endpoints
    reader, writer = await asyncio.open_connection(
        place.host, place.port, ssl=own, server_hostname="bridge"
    )
    writer.write(b"\r\n\r\n" + request("OPTIONS", transport="TLS"))
    async with asyncio.timeout(10):
        if admitted:
            assert await reader.readexactly(2) == b"\r\n"
            await eventually(lambda: bool(events), "a request")
        else:
            assert await reader.read() == b""
    writer.close()
    await listener.stop()

    refused = metrics.registry.get_sample_value("siprec_sip_unadmitted_total", {"transport": "tls"})
    assert (len(events), refused) == ((1, None) if admitted else (0, 1))


@pytest.mark.parametrize(
    ("days", "word", "good"), [(30, "ok", True), (10, "SOON", True), (-1, "BAD", False)]
)
async def test_the_doctor_says_when_a_certificate_wants_renewal(
    tmp_path: Path, days: int, word: str, good: bool
) -> None:
    authority = Authority(tmp_path / "ca")
    folder = tmp_path / "sni"
    folder.mkdir()
    for source, suffix in zip(
        authority.sign("a.example.com", days=days), (".crt", ".key"), strict=True
    ):
        shutil.copyfile(source, folder / f"a.example.com{suffix}")
    certificate, key = authority.sign("bridge")
    settings = load(
        {
            "TLS_PORT": "0", "TLS_CERT_PATH": str(certificate), "TLS_KEY_PATH": str(key),
            "TLS_SNI_DIR": str(folder),
        }
    )  # fmt: skip

    finding = examine_tls(settings)

    assert str(finding).startswith(word)
    assert finding.ok is good
    assert ("renew it" in finding.text) is (word != "ok")
