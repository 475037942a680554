"""What several packages need: files, the command line, processes. It imports nothing of ours."""
