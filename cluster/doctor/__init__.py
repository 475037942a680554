"""What a cluster needs, looked at: one line for each part, good or with what to do."""
