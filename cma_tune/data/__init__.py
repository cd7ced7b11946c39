"""Datasets: what the eleven are, splits, few-shot picks, where images come from, stored features."""
