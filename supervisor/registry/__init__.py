"""All circuits of a supervisor: who wants them, what is free, what is kept."""
