"""The coordinator: its port, the etcd adapter, the keys and what is kept under them."""
