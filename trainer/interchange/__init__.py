"""Other tools' checkpoints, read and written exactly or refused; one module per format."""
