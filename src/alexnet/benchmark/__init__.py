"""How fast, against whom, how far from the machine's limit: ``alexnet bench``."""
