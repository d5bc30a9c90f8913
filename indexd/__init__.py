"""A node: holds shards of galleries, writes their logs and searches them."""
