"""What a run is: sections, presets, options, and the check of all of it before a worker starts."""
