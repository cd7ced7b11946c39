"""What a learned prompt changed against zero-shot, from a finished run and without training."""
