"""Agreement between daemons: the port, the ZooKeeper driver and the in-memory driver."""
