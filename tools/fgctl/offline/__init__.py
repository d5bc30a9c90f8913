"""Commands on a store alone, without a cluster. Nothing in this package writes."""
