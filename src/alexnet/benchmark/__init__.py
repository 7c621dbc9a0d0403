"""``alexnet bench``: speed of this project and of its alternatives, relative to the limits of the machine."""
