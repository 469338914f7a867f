"""The ring: what comes out of it is what would come out of sockets."""
