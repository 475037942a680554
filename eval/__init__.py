"""Quality numbers that can be trusted: protocols, sampling, features, distances, the queue and its reports."""
