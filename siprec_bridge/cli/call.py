"""`siprec-bridge call`: our own SRC, to try a recording server with."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from siprec_bridge.cli.database import refuse
from siprec_bridge.cli.tls import tls_of
from siprec_bridge.provider import ConfigurationError


def call(
    target: Annotated[
        str | None, typer.Argument(help="server to call, such as sip:192.0.2.1:5060;transport=tcp")
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Argument(help="audio file of each participant; none: the sample call"),
    ] = None,
    to: Annotated[str | None, typer.Option(help="server to call, if not the argument")] = None,
    transport: Annotated[str | None, typer.Option(help="udp, tcp or tls")] = None,
    codec: Annotated[str, typer.Option(help="pcmu or pcma")] = "pcmu",
    participants: Annotated[
        list[str] | None,
        typer.Option(
            "--participants", "--participant", help="'Alice <sip:alice@example.com>', repeated"
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="pace of the packets; 1 is that of speech", min=0.1, max=100)
    ] = 1.0,
    user: Annotated[
        str | None, typer.Option(help="name:password, for a server that asks for it")
    ] = None,
    srtp: Annotated[bool, typer.Option("--srtp", help="encrypt the media")] = False,
    suite: Annotated[
        str, typer.Option(help="with --srtp: how, such as AEAD_AES_128_GCM")
    ] = "AES_CM_128_HMAC_SHA1_80",
    dtls: Annotated[
        bool, typer.Option("--dtls", help="encrypt the media, with keys by DTLS")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option(help="TLS: CAs that the server's certificate must come from")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="TLS: our certificate and key in one PEM file")
    ] = None,
    brief: Annotated[bool, typer.Option(help="print the report only")] = False,
) -> None:
    """Place a SIPREC call to any recording server and tell what it answered."""
    # Only here: codecs and numpy take longer to load than most other commands take in all.
    from siprec_bridge.caller import (
        CallError,
        CallPlan,
        load_leg,
        parse_participant,
        parse_target,
        place_call,
        report_lines,
        sample_call,
    )

    arguments = list(audio or [])
    goal = to
    if goal is None:
        goal = target
    elif target is not None:
        arguments.insert(0, Path(target))
    if goal is None:
        raise ConfigurationError("--to", "say whom to call, such as sip:127.0.0.1:5060")
    try:
        people = [parse_participant(text) for text in participants or []]
        if arguments:
            named = people + [
                (path.stem, f"sip:{path.stem}@example.com") for path in arguments[len(people) :]
            ]
            legs = [load_leg(*who, path) for who, path in zip(named, arguments, strict=False)]
        else:
            legs = [
                replace(leg, name=people[index][0], aor=people[index][1])
                if index < len(people)
                else leg
                for index, leg in enumerate(sample_call())
            ]
        name, _, password = (user or "").partition(":")
        plan = CallPlan(
            parse_target(goal, transport),
            legs,
            codec.lower(),
            rate,
            tls_of(ca, cert),
            (name, password) if user else None,
            suite if srtp else None,
            dtls,
        )
        report = asyncio.run(place_call(plan, on_status=None if brief else print))
    except CallError as error:
        refuse(str(error))
    for line in report_lines(report):
        print(line)
    raise typer.Exit(0 if report.ok else 1)
