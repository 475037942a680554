"""Second implementations and stand-ins that ours are compared with."""
