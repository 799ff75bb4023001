"""Before a job queues: what would fail, or wait for ever, after it."""
