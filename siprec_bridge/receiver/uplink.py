"""What a worker tells the bridge by itself: counts, and what it noticed of a stream."""

import contextlib
import socket
import threading

from siprec_bridge.receiver.control import Counters, encode
from siprec_bridge.receiver.live import LiveStream


class Uplink:
    """A worker's end of the control socket, as far as it talks."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()  # a line of one thread is not to be in one of another
        self.counters = Counters()  # since they were last told

    def tell(self, message: dict[str, object]) -> None:
        """Say something to the bridge."""
        line = encode(message)
        with self._lock, contextlib.suppress(OSError):  # the bridge is gone: the next read says so
            self._control.sendall(line)

    def tell_of(self, stream: LiveStream, event: str, **more: object) -> None:
        """Say something of a stream."""
        spec = stream.spec
        self.tell(
            {
                "event": event,
                "stream_id": spec.stream_id,
                "session_id": spec.session_id,
                "label": spec.label,
                **more,
            }
        )

    def tell_counters(self) -> None:
        """Say what was counted, and begin anew."""
        if counted := self.counters.to_json():
            self.tell({"event": "counters", "counters": counted})
            self.counters = Counters()
