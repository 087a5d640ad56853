"""What runs inside a guest. Files here are tests by name only when a guest is told to run them."""
