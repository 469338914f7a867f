"""The HTTP side: health, metrics, sessions and their audio, jobs, and the page that shows them.

Refuses to know SIP and media; it reads the store and asks the health register.
"""

from siprec_bridge.api.front import Front
from siprec_bridge.api.routes import Api

__all__ = ["Api", "Front"]
