"""One server for search, detection and embeddings, with pages to click on."""
