"""Train a crosscoder over two or more language models and measure what it found."""
