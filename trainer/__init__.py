"""The training run: configuration, loop, engines, checkpoints, hooks. Composes all other packages."""
