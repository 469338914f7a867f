"""What the bridge tells its operators: the metric catalogue, the log pipeline, the health facts.

Refuses to know calls and protocols: whoever makes a thing happen counts and logs it.
"""

from siprec_bridge.telemetry.health import Check, Health, HealthReport
from siprec_bridge.telemetry.logs import configure_logs, masked
from siprec_bridge.telemetry.metrics import Metrics

__all__ = ["Check", "Health", "HealthReport", "Metrics", "configure_logs", "masked"]
