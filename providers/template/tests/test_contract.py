"""The provider keeps the bridge's contract."""

import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from service import service

from siprec_bridge.testing import ProviderContract


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The service's address, for all checks."""
    with service() as address:
        yield address


class TestAcme(ProviderContract):
    """What is checked stands in `siprec_bridge.testing`."""

    vendor = "acme"

    @pytest.fixture(autouse=True)
    def running(self, url: str) -> None:
        """The service runs."""
        self.url = url

    def options(self, folder: Path) -> Mapping[str, str]:
        """With these it works."""
        return {"ACME_URL": self.url, "ACME_TIMEOUT": "30s"}

    def wrong_options(self) -> Iterable[tuple[str, str]]:
        """None of these may pass."""
        return [("ACME_URL", "gpu"), ("ACME_TIMEOUT", "soon"), ("ACME_MAX_CONCURRENT", "0")]

    def away_options(self, folder: Path) -> Mapping[str, str] | None:
        """An address where nobody listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return {"ACME_URL": f"http://127.0.0.1:{port}/hear"}
