"""What a training would need, computed without running it: memory, time and FLOPs, for --dry_run."""
