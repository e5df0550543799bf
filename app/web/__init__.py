"""Parts that all pages share: dependencies, templates, plots, security headers, metrics."""
