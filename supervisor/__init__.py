"""velad and velactl: keeps circuits alive. Installed as vela.supervisor (see setup.cfg)."""
