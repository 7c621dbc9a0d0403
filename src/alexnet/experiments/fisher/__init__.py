"""The runner-up of 2012: local descriptors, a mixture of Gaussians, Fisher vectors, a linear classifier."""
