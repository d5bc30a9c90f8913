"""Search on GPUs: the same answers, from a copy of each shard in a device's memory."""
