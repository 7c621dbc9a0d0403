"""Explanations of a network: occlusion and gradient maps, units, features, nearest neighbors, embeddings."""
