"""Delivery: events from the outbox to AMQP, webhooks and WebSocket listeners. CloudEvents 1.0.

Refuses to know calls and recognisers; what is in the outbox is delivered, what is not never was.
"""

from siprec_bridge.delivery.amqp import AmqpSink
from siprec_bridge.delivery.broker import Brokers, BrokerTls
from siprec_bridge.delivery.events import beginnings_of_types
from siprec_bridge.delivery.relay import (
    Declined,
    Relay,
    Returned,
    Sink,
    Unacceptable,
    Unreachable,
)
from siprec_bridge.delivery.webhook import Hook, WebhookSink, load_hooks
from siprec_bridge.delivery.websocket import PATH, TranscriptSocket

__all__ = [
    "PATH",
    "AmqpSink",
    "BrokerTls",
    "Brokers",
    "Declined",
    "Hook",
    "Relay",
    "Returned",
    "Sink",
    "TranscriptSocket",
    "Unacceptable",
    "Unreachable",
    "WebhookSink",
    "beginnings_of_types",
    "load_hooks",
]
