"""Bundle + data -> numbers: counted over whole splits, never averaged over batches."""
