"""The way to the models: messages and client for the pages, a worker process that owns the models."""
