"""Requirements of a training, computed without running it: memory, time and FLOPs, for --dry_run."""
