"""2012 again: what the paper says, as something that can be run."""
