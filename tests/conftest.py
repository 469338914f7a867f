"""What several test folders share: a broker, a database server, and hypothesis without surprises."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from harness.bridge import none_left
from harness.postgresql import Postgresql
from harness.rabbitmq import RabbitMq
from harness.s3 import S3

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=100,
)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A test that sets up logging does so for itself alone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _no_bridges_left() -> Iterator[None]:
    """A test that fails leaves nothing running; what several share was there before it."""
    with none_left():
        yield


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A real broker, the same for all tests; each uses an exchange of its own."""
    if not RabbitMq.installed():
        pytest.fail("rabbitmq-server is not installed: run scripts/setup test")
    broker = RabbitMq(tmp_path_factory.mktemp("rabbitmq"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """A real server, the same for all tests; each makes a database of its own."""
    if Postgresql.programs() is None:
        pytest.fail("postgresql is not installed: run scripts/setup test")
    server = Postgresql()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server, the same for all tests; each makes a bucket of its own."""
    server = S3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.new_database()
