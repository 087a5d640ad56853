"""The configuration: its file, its records, and the rules that they keep."""
