"""Item stages and heads on the workers of a Ray cluster: this machine's, or one that is running."""
