"""The web side's way to the inference worker: messages, client, supervisor. Never loads torch."""
