"""Tokens of the dispatcher's nodes: JWTs with a name, an audience and an end. RFC 7519."""

import json
import time
from pathlib import Path

from joserfc import jwk, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey, OKPKey

from siprec_wrappers.farm.settings import SettingError

AUDIENCE = "whisper-farm"
_SHORTEST_SECRET = 32  # RFC 7518 §3.2: HS256 wants a key of at least its hash's size
_CLAIMS = jwt.JWTClaimsRegistry(
    exp={"essential": True},
    aud={"essential": True, "value": AUDIENCE},
    sub={"essential": True},
)

Key = OctKey | OKPKey


class Refused(Exception):
    """A token that is not to be trusted; the message says why."""


def read_key(path: Path) -> Key:
    """A file's JWK (OKP, Ed25519) or, if it is no JSON, its octets as a secret. Raises SettingError."""
    try:
        data = path.read_bytes().strip()
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from error
    if data.startswith(b"{"):
        try:
            return OKPKey.import_key(json.loads(data))
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise SettingError(f"{path}: no JWK of type OKP: {error}") from error
    if len(data) < _SHORTEST_SECRET:
        raise SettingError(f"{path}: a secret has at least {_SHORTEST_SECRET} octets")
    key: OctKey = jwk.import_key(data, "oct")
    return key


def issue(key: Key, node: str, valid: float) -> str:
    """A token for a node, valid for so many seconds. Raises SettingError for a public key."""
    if isinstance(key, OKPKey) and not key.is_private:
        raise SettingError("a public key signs nothing: give the private one")
    now = int(time.time())
    claims = {"sub": node, "aud": AUDIENCE, "iat": now, "exp": now + max(1, int(valid))}
    algorithm = _algorithm(key)
    return jwt.encode({"alg": algorithm}, claims, key, algorithms=[algorithm])


def node_of(key: Key, token: str) -> str:
    """The node that a token names. Raises Refused."""
    try:
        claims = jwt.decode(token, key, algorithms=[_algorithm(key)]).claims
        _CLAIMS.validate(claims)
    except (JoseError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Anybody may send any header: joserfc trips over some whose fields are of other types.
        raise Refused(str(error)) from error
    return str(claims["sub"])


def _algorithm(key: Key) -> str:
    """By the key, never by what the token says of itself. RFC 8725 §3.1."""
    return "HS256" if isinstance(key, OctKey) else "Ed25519"
