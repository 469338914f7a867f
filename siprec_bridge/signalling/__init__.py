"""SIP on the wire: UDP, TCP and TLS endpoints that drive the sans-I/O `SipServer`. RFC 3261 §18.

Refuses to know what a message means; tells whoever listens what the machine reports.
"""

from siprec_bridge.signalling.admission import Admission
from siprec_bridge.signalling.listener import Endpoint, Listener
from siprec_bridge.signalling.tls import TlsFiles, TlsServerContext

__all__ = ["Admission", "Endpoint", "Listener", "TlsFiles", "TlsServerContext"]
