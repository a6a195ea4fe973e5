"""One step per file over `rlhf_core`, with tables, artifacts, caching and retries."""
