"""What every room stands on: settings, errors, texts, tokens, models, the wire."""
