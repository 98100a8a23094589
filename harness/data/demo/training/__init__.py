"""How the demo's generators are trained, one file a family; `python -m harness.data.demo.train_generators` runs it."""
