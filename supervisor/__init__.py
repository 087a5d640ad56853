"""velad and velactl. Installed as vela.supervisor (see setup.cfg)."""
