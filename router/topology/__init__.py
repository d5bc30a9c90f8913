"""What the router knows of the cluster, and how it reaches the nodes."""
