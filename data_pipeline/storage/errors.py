"""What is raised over stored data that is not what was packed."""


class DamagedDataError(ValueError):
    """Stored data is missing, truncated or not what was packed; the message names the shard, and the sample's key."""
