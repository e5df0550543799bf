"""What every page needs: dependencies, templates, plots, security headers, metrics."""
