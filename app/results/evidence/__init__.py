"""Questions about how well a claim is supported, and the words for the answers."""
