"""Layer-2 tunnels between two routers, VELA's and others, set up alike to be compared."""
