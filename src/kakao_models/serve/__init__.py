"""An HTTP service over an `Embedder`: embeddings in OpenAI's format, and classification."""
