"""Training in several processes: data parallelism, the two towers on two devices, sharded layers, and their costs."""
