"""What etcd holds: saving it, and writing it anew from the store when etcd was lost."""
