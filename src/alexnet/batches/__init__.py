"""Arrays -> batches: which picture comes when, which view of it, ahead of the network."""
