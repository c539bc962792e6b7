"""Tools for COYO-700M and tables like it: preview, statistics, filters, download, shards, embeddings."""
