"""What is published for programs: the schema of each event, and the ways to them."""

from typing import Any

from siprec_bridge.delivery.events import CONTENT_TYPE, EVENT_MODELS, SCHEMA
from siprec_bridge.delivery.subscriptions import Message


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (2020-12) of the structured form of every event, by type."""
    return {
        kind: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": SCHEMA.format(kind),
            **model.model_json_schema(mode="serialization"),
        }
        for kind, model in EVENT_MODELS.items()
    }


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 document of the ways to the events."""
    messages = {
        kind: {
            "name": kind,
            "summary": (model.__doc__ or "").strip().splitlines()[0],
            "contentType": CONTENT_TYPE,
            "payload": {"$ref": f"events.schema.json#/{kind}"},
        }
        for kind, model in EVENT_MODELS.items()
    }
    said = Message.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = said.pop("$defs")
    spoken = {
        "listener": {
            "name": "listener",
            "summary": "What a listener may say: subscribe, unsubscribe.",
            "contentType": CONTENT_TYPE,
            "payload": said,
        }
    }
    references = {kind: {"$ref": f"#/components/messages/{kind}"} for kind in messages}

    def operation(channel: str) -> dict[str, Any]:
        return {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{kind}"} for kind in messages],
        }

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "siprec-bridge events",
            "version": "1",
            "description": "CloudEvents 1.0: structured over WebSocket and to webhooks; over AMQP binary, where the "
            "payload is the schema's `data` and the other members are ce-* headers.",
        },
        "channels": {
            "websocket": {
                "address": "/ws/transcripts",
                "messages": references | {"listener": {"$ref": "#/components/messages/listener"}},
                "bindings": {"ws": {"method": "GET"}},
            },
            "amqp": {
                "address": "{type}.{session_id}",
                "parameters": {"type": {}, "session_id": {}},
                "messages": references,
                "description": "Where the call's tenant or direction is known, a CC header adds the "
                "key call.{tenant}.{direction}.{type}.",
                "bindings": {
                    "amqp": {
                        "is": "routingKey",
                        "exchange": {"name": "siprec", "type": "topic", "durable": True},
                    }
                },
            },
            "webhook": {
                "address": "/",
                "description": "the path of a URL of WEBHOOKS",
                "messages": references,
            },
        },
        "operations": {
            "sendOverWebSocket": operation("websocket"),
            "sendOverAmqp": operation("amqp"),
            "postToWebhook": operation("webhook")
            | {"bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}}},
            "receiveOverWebSocket": {
                "action": "receive",
                "channel": {"$ref": "#/channels/websocket"},
                "messages": [{"$ref": "#/channels/websocket/messages/listener"}],
            },
        },
        "components": {"messages": messages | spoken, "schemas": schemas},
    }
