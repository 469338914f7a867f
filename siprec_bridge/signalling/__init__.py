"""SIP on the wire: UDP and TCP endpoints that drive the sans-I/O `SipServer`. RFC 3261 §18.

Refuses to know what a message means; tells whoever listens what the machine reports.
"""

from siprec_bridge.signalling.listener import Endpoint, Listener

__all__ = ["Endpoint", "Listener"]
