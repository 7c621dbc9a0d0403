"""Training batches: the order of the images, their crops and colors, and threads that load ahead of the network."""
