"""Arrays -> batches: which image comes when, which view of it, ahead of the network."""
