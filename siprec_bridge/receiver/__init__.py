"""The process that receives: RTP sockets swept, checked, counted, appended to spools. RFC 3550.

Refuses to know calls, codecs' insides and the database. It imports little, so that a worker that
died is back in a fraction of a second: import its modules, not this package's front door.
"""
