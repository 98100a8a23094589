"""From stored scores to numbers: metrics, bootstrap intervals, comparisons, equivalence with published values."""
