"""Embed, keep and search an archive; ground decisions in remembered neighbours."""
