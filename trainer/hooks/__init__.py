"""What happens around a step: metrics, checkpoints, stops, the watchdog."""
