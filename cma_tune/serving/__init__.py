"""Learned classifiers for use: exported, opened again, and run on images."""
