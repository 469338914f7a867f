"""What several test folders share: a broker, and hypothesis without surprises."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from harness.rabbitmq import RabbitMq

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
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A real broker, the same for all tests; each uses an exchange of its own."""
    if not RabbitMq.installed():
        pytest.fail("rabbitmq-server is not installed: run scripts/setup test")
    broker = RabbitMq(tmp_path_factory.mktemp("rabbitmq"))
    broker.start()
    yield broker
    broker.stop()
