"""One circuit: its life, its interface, its sockets, its worker, its signalling."""
