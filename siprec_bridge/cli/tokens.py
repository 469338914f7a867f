"""`siprec-bridge token`: who may use HTTP and WebSocket."""

import hashlib
from typing import Annotated

import typer

from siprec_bridge.access import SCOPES, new_secret, read_tokens
from siprec_bridge.provider import ConfigurationError

app = typer.Typer(help="Tokens for HTTP and WebSocket.", no_args_is_help=True)


@app.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="whose it is, for the log")],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCOPES)}; repeated. None: read")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="only sessions of this group; repeated")
    ] = None,
    participant: Annotated[
        list[str] | None,
        typer.Option(help="only sessions with this AoR, such as sip:*@example.com; repeated"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="only sessions from this SIP address or network; repeated"),
    ] = None,
) -> None:
    """Make a token, and the line to configure. The token itself is shown this once."""
    secret = new_secret()
    limits = {"group": group, "participant": participant, "peer": peer}
    words = [f"{kind}={value}" for kind, values in limits.items() for value in values or ()]
    hashed = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    line = " ".join([name, hashed, ",".join(scope or ["read"]), *words])
    try:
        if len(read_tokens(line)) != 1 or "#" in line:
            raise ValueError("no ; # or line break can be part of it")
    except ValueError as error:
        raise ConfigurationError("token new", str(error)) from None
    print(f"token (give it to the client; it is not shown again):\n  {secret}")
    print(f"line for HTTP_TOKENS or the file of HTTP_TOKENS_FILE:\n  {line}")
