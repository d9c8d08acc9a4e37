"""How people and programs talk to a cluster: the command, the Python SDK, the libcloud driver."""
