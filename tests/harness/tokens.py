"""Tokens for tests: the secret, and the line that an operator configures."""

import hashlib
from dataclasses import dataclass

from siprec_bridge.access import Token, new_secret, read_tokens


@dataclass(frozen=True)
class Given:
    """A token as its client has it, and as the bridge has it."""

    secret: str
    line: str

    @property
    def token(self) -> Token:
        """What the bridge makes of the line."""
        return read_tokens(self.line)[0]

    @property
    def headers(self) -> dict[str, str]:
        """What its client sends."""
        return {"Authorization": f"Bearer {self.secret}"}


def given(name: str, scopes: str, limits: str = "") -> Given:
    """A new token with these scopes (by commas) and limits."""
    secret = new_secret()
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    return Given(secret, f"{name} sha256:{hashed} {scopes} {limits}".strip())
