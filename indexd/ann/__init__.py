"""The search structure of one shard replica; the only package that imports faiss."""
