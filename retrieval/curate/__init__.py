"""Curation of an archive: copies, leaks between splits, outliers, clusters, gaps, and what to label next."""
