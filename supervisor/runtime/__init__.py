"""What the supervisor runs on: its event loop, child processes, name look-ups."""
