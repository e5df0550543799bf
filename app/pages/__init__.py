"""HTML pages, one module per page; each renders the template of the same name."""
