"""The configuration: file, records, and the rules for them."""
