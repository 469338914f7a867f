"""Live transcripts: streams heard while the call is on, by a recogniser behind a WebSocket.

A process of its own (`process`) reads the spools as they grow; `desk` is the bridge's side. Refuses to
be waited for: whatever becomes of it, the call is recorded, and transcribed when it is over. Nothing
is imported here, so that the process imports little.
"""
