"""From stored results to tables, figures and a page, beside the published numbers."""
