"""Running a model: embeddings, engines and pipelines."""
