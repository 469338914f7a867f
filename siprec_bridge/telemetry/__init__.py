"""What the bridge tells its operators: the metric catalogue, the log pipeline, the health facts,
and what systemd hears.

Refuses to know calls and protocols: whoever makes a thing happen counts and logs it.
"""

from siprec_bridge.telemetry.health import Check, Health, HealthReport
from siprec_bridge.telemetry.logs import configure_logs, masked
from siprec_bridge.telemetry.metrics import Metrics
from siprec_bridge.telemetry.systemd import ServiceManager

__all__ = [
    "Check",
    "Health",
    "HealthReport",
    "Metrics",
    "ServiceManager",
    "configure_logs",
    "masked",
]
