"""What bounds a text's influence: scrubbing, clipping, noise, accounting, the ledger."""
