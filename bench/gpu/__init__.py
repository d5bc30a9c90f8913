"""Search on a GPU, beside faiss alone: `python -m bench.gpu`."""
