"""The contract that detectors are written against; imports no ray, mlflow or typer."""
