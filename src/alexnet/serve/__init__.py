"""An HTTP server for one classifier, with a web page: what ``alexnet serve`` runs."""
