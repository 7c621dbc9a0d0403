"""The commands `study claims`, `contest`, `data-size`, `depth`, `probes` and `scaling`."""
