"""A site: prepares its text, trains on it, and sends what its policy allows."""
