"""The companion trainer: supervised and semi-supervised learning, and a laboratory of neural collapse."""
