"""One circuit: its lifecycle, interface, sockets, worker and signalling."""
