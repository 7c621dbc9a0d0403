"""The report of a run: report.html with its metrics, plots and warnings."""
