"""The aggregation server: rounds, averaging, measuring, checkpoints, reports."""
