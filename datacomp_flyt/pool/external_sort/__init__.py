"""External sort of a pool that is larger than memory (`--work_dir`)."""
