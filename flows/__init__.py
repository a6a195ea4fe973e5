"""The chains of steps, and the `rlhf` command."""
