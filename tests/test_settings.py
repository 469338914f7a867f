"""What an operator writes, and what the bridge makes of it or says against it."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import Settings, gather, likely_typos, load


def test_with_nothing_configured_everything_has_a_default_under_one_data_folder() -> None:
    settings = load({})

    assert settings.recordings == Path("data/recordings").absolute()
    assert settings.database == f"sqlite:///{Path('data/siprec-bridge.db').absolute()}"
    assert settings.amqp_url is None


def test_udp_and_tcp_share_the_ports_unless_they_are_named_apart() -> None:
    shared = load({"PORTS": "5060, 5070"})
    apart = load({"PORTS": "5060", "TCP_PORTS": "5080", "UDP_PORTS": "none"})

    assert (shared.sip_udp_ports, shared.sip_tcp_ports) == ((5060, 5070), (5060, 5070))
    assert (apart.sip_udp_ports, apart.sip_tcp_ports) == ((), (5080,))


@pytest.mark.parametrize(
    ("options", "came_to", "received_on"),
    [
        ({}, "192.0.2.1", "0.0.0.0"),
        ({"SIP_HOST": "192.0.2.1"}, "192.0.2.1", "192.0.2.1"),
        ({"SIP_HOST": "192.0.2.1, [2001:db8::1]"}, "192.0.2.1", "192.0.2.1"),
        ({"SIP_HOST": "192.0.2.1,2001:db8::1"}, "2001:db8::1", "2001:db8::1"),
        ({"SIP_HOST": "0.0.0.0,::"}, "192.0.2.1", "0.0.0.0"),
        ({"SIP_HOST": "192.0.2.1,::"}, "2001:db8::1", "::"),
        ({"SIP_HOST": "192.0.2.1,::", "RTP_BIND_IP": "192.0.2.9"}, "192.0.2.1", "192.0.2.9"),
    ],
)
def test_rtp_is_received_where_the_call_came_to_unless_an_address_is_named_for_it(
    options: dict[str, str], came_to: str, received_on: str
) -> None:
    assert load(options).rtp_host_for(came_to) == received_on


@pytest.mark.parametrize(
    ("options", "received_on"),
    [
        ({"SIP_HOST": "::"}, "fe80::1%4"),
        ({"SIP_HOST": "0.0.0.0,::"}, "fe80::1%4"),
        ({"SIP_HOST": "fe80::1%eth0"}, "fe80::1%eth0"),
        ({"SIP_HOST": "fe80::1%eth0,fe80::1%eth1"}, "fe80::1%4"),
        ({"SIP_HOST": "::", "RTP_BIND_IP": "2001:db8::1"}, "2001:db8::1"),
        ({"SIP_HOST": "::", "EXTERNAL_IP": "2001:db8::5"}, "::"),
    ],
)
def test_the_rtp_of_a_link_local_call_is_received_on_its_link(
    options: dict[str, str], received_on: str
) -> None:
    assert load(options).rtp_host_for("fe80::1", 4) == received_on


@pytest.mark.parametrize(
    ("external", "came_to", "announced"),
    [
        ("", "10.0.0.1", "10.0.0.1"),
        ("203.0.113.5", "10.0.0.1", "203.0.113.5"),
        ("203.0.113.5", "fd00::1", "fd00::1"),
        ("203.0.113.5, 2001:db8::5", "fd00::1%eth0", "2001:db8::5"),
        ("10.0.0.1=203.0.113.5,10.1.0.1=198.51.100.5", "10.1.0.1", "198.51.100.5"),
        ("10.0.0.1=203.0.113.5,192.0.2.9", "10.0.0.1", "203.0.113.5"),
        ("10.0.0.1=203.0.113.5,192.0.2.9", "10.2.0.1", "192.0.2.9"),
        ("10.0.0.1=203.0.113.5", "10.2.0.1", "10.2.0.1"),
        ("fd00:0::1=2001:db8::5", "fd00::1", "2001:db8::5"),
    ],
)
def test_the_address_outside_of_a_nat_is_by_family_or_by_ours(
    external: str, came_to: str, announced: str
) -> None:
    settings = load({"EXTERNAL_IP": external} if external else {})

    assert settings.announced_for(came_to) == announced


def test_by_default_there_is_a_media_worker_for_each_core_we_may_use() -> None:
    assert load({}).worker_count == len(os.sched_getaffinity(0))
    assert load({"MEDIA_WORKERS": "3"}).worker_count == 3


def test_what_is_kept_may_be_kept_for_ever() -> None:
    settings = load({"KEEP_EVENTS": "never", "KEEP_AUDIO": "Never"})

    assert (settings.keep_events, settings.keep_audio) == (None, None)


def test_a_name_that_is_nearly_a_setting_is_told_with_it_and_others_names_are_not() -> None:
    options = {
        "SIP_ALOWED_SOURCES": "192.0.2.1", "AMQP_ULR_FILE": "/x", "HTTP_TOKENS_FILE": "/y",
        "HTTP_PROXY": "http://p", "SSL_CERT_FILE": "/z", "WHISPER_MODEL": "base", "PORT": "80",
    }  # fmt: skip

    assert likely_typos(options) == [("SIP_ALOWED_SOURCES", "SIP_ALLOWED_SOURCES")]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("250ms", 0.25), ("7", 7)]
)
def test_a_duration_is_written_as_people_say_it(text: str, seconds: float) -> None:
    assert load({"RTP_TIMEOUT": text}).rtp_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("options", "setting", "allowed"),
    [
        ({"HTTP_PORT": "abc"}, "HTTP_PORT=abc", "integer"),
        ({"HTTP_PORT": "70000"}, "HTTP_PORT=70000", "65535"),
        ({"MEDIA_WORKERS": "0"}, "MEDIA_WORKERS=0", "greater than or equal to 1"),
        ({"RTP_SOURCE": "sip"}, "RTP_SOURCE=sip", "'learned', 'signalled' or 'any'"),
        ({"EXTERNAL_IP": "srs.example"}, "EXTERNAL_IP=srs.example", "10.0.0.1=203.0.113.5"),
        ({"EXTERNAL_IP": "10.0.0.1=::5"}, "EXTERNAL_IP=10.0.0.1=::5", "both"),
        ({"PORTS": "5060,x"}, "PORTS=5060,x", "integer"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL=loud", "'debug', 'info', 'warning' or 'error'"),
        ({"RTP_TIMEOUT": "soon"}, "RTP_TIMEOUT=soon", "90s, 20m, 1h30m or 90d"),
        ({"AMQP_HEARTBEAT": "0"}, "AMQP_HEARTBEAT=0", "greater than or equal to 1 seconds"),
        ({"REDACT_REGIONS": "US,UK"}, "REDACT_REGIONS=US,UK", "UK: countries by ISO 3166"),
        ({"KEEP_AUDIO": "90"}, "KEEP_AUDIO=90", "a unit is needed: 90d"),
        ({"KEEP_AUDIO_SIZE": "500"}, "KEEP_AUDIO_SIZE=500", "a unit is needed: 500GB"),
        ({"KEEP_SESSIONS": "0d"}, "KEEP_SESSIONS=0d", "greater than 0 seconds"),
        ({"RTP_PORT_MIN": "9000", "RTP_PORT_MAX": "9001"}, "settings", "RTP_PORT_MAX must be"),
        ({"STT_DEFAULT_VENDOR": "x"}, "settings", "not among SUPPORTED_VENDORS"),
        ({"UDP_PORTS": "none", "TCP_PORTS": "none"}, "settings", "at least one"),
        ({"TLS_CLIENT_NAMES": "a.example.com"}, "settings", "needs TLS_CLIENT_CA_PATH"),
        ({"VCON_EVENTS": "url"}, "settings", "VCON_EVENTS=url needs HTTP_PUBLIC_URL"),
        (
            {"TLS_CLIENT_NAMES": "a*.example.com", "TLS_CLIENT_CA_PATH": "ca.pem"},
            "settings",
            "a wildcard is *.example.com",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(
    options: dict[str, str], setting: str, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load(options)

    assert refusal.value.setting == setting
    assert allowed in refusal.value.reason
    assert "\n" not in str(refusal.value)


def test_the_environment_outranks_dotenv_which_outranks_toml(tmp_path: Path) -> None:
    toml = tmp_path / "bridge.toml"
    toml.write_text('log_level = "error"\n[http]\nport = 1\nhost = "toml"\n[amqp]\nurl = "toml"\n')
    dotenv = tmp_path / ".env"
    dotenv.write_text("HTTP_PORT=2\nHTTP_HOST=dotenv\n")

    options = gather({"HTTP_PORT": "3"}, toml_file=toml, dotenv_file=dotenv)

    assert options == {
        "LOG_LEVEL": "error",
        "HTTP_PORT": "3",
        "HTTP_HOST": "dotenv",
        "AMQP_URL": "toml",
    }


def test_a_provider_reads_its_own_names_from_the_same_file(tmp_path: Path) -> None:
    toml = tmp_path / "bridge.toml"
    toml.write_text('[whisper]\nmodel = "small"\nextra_args = "--beam_size 5"\n')

    options = gather({}, toml_file=toml)

    assert options["WHISPER_MODEL"] == "small"
    assert options["WHISPER_EXTRA_ARGS"] == "--beam_size 5"


def test_a_name_in_the_toml_file_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "bridge.toml"
    toml.write_text("htpp_port = 1\n")

    with pytest.raises(ConfigurationError, match="HTPP_PORT: is not a setting of the bridge"):
        gather({}, toml_file=toml)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("= 1")

    with pytest.raises(ConfigurationError, match="cannot be read"):
        gather({}, toml_file=tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        gather({}, toml_file=tmp_path / "broken.toml")


def test_a_secret_may_lie_in_a_file_of_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "amqp"
    secret.write_text("amqp://user:secret@broker/\n")

    assert gather({"AMQP_URL_FILE": str(secret)})["AMQP_URL"] == "amqp://user:secret@broker/"
    with pytest.raises(ConfigurationError, match="AMQP_URL_FILE"):
        gather({"AMQP_URL_FILE": str(tmp_path / "missing")})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ARCHIVE_OPTIONS": '{"secret": "x"'}, r"ARCHIVE_OPTIONS=\*\*\*: is no JSON"),
        ({"ARCHIVE_OPTIONS": '["x"]'}, "a JSON object"),
        ({"ARCHIVE_LAYOUT": "{year}"}, r"ARCHIVE_LAYOUT=\{year\}: needs \{session\}"),
        ({"ARCHIVE_KEEP_LOCAL": "24h"}, "needs ARCHIVE_URL"),
        ({"RECORDINGS_RECIPIENTS": "age1x"}, r"RECORDINGS_RECIPIENTS=\*\*\*: age1x: invalid"),
        ({"RECORDINGS_RECIPIENTS": "AGE-SECRET-KEY-1QQ"}, "give its public key"),
        ({"RECORDINGS_PLAIN_FOR": "24h"}, "needs RECORDINGS_RECIPIENTS"),
        ({"REDACT_KEEP_ORIGINAL": "true"}, "needs RECORDINGS_RECIPIENTS: who may read it"),
    ],
)
def test_what_cannot_become_of_recordings_is_refused(options: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        load(options)

    assert '"secret"' not in str(refused.value)
    assert "KEY-1QQ" not in str(refused.value)


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_codec_that_nobody_can_decode_is_named() -> None:
    assert load({"CODECS": "pcma, g729"}).codecs == ("PCMA", "G729")

    with pytest.raises(ConfigurationError, match=r"CODECS=PCMA,EVS.*EVS: names among PCMU"):
        load({"CODECS": "PCMA,EVS"})


def test_the_public_address_is_an_origin_of_our_own() -> None:
    given = {"HTTP_ORIGINS": "https://a.example.com", "HTTP_PUBLIC_URL": "https://B.example.com/x"}

    assert load(given).origins == ("https://a.example.com", "https://b.example.com")
    assert load({}).origins == ()
