"""The queue of evaluations, and the service that works on it."""
