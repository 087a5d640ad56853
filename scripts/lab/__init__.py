"""Network namespaces in which VELA is demonstrated, tested and measured. Standard library only."""
