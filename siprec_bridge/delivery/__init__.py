"""Delivery: events from the outbox to AMQP and to WebSocket listeners. CloudEvents 1.0.

Refuses to know calls and recognisers; what is in the outbox is delivered, what is not never was.
"""

from siprec_bridge.delivery.amqp import AmqpSink
from siprec_bridge.delivery.relay import Relay, Returned, Sink, Unreachable
from siprec_bridge.delivery.websocket import PATH, TranscriptSocket

__all__ = ["PATH", "AmqpSink", "Relay", "Returned", "Sink", "TranscriptSocket", "Unreachable"]
