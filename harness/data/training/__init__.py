"""What training reads: faces with their annotations, the cache of their pixels, and batches."""
