"""Weights made small: pruned, shared, in integers, in Huffman codes; and the file that holds them."""
