"""Bundle -> a server that answers over HTTP, with a page: what ``alexnet serve`` starts."""
