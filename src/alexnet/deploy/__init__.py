"""Bundle -> something that answers."""
