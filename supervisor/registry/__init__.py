"""All circuits of a supervisor: requests, allocation, storage."""
