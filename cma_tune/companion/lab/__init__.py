"""The laboratory: experiments on neural collapse, each leaving a record and its curves."""
