"""The algorithms of RLHF, its configuration and its records; no orchestration, no tables."""
