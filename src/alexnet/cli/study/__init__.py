"""The commands `study claims`, `study contest`, `study depth` and `study scaling`."""
