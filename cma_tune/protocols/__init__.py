"""The field's protocols, each in one file that reads from top to bottom."""
