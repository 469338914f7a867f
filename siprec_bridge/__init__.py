"""A SIPREC recording server: calls in over SIP and RTP, who-said-what out."""

__version__ = "0.1.0"
