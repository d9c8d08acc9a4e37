"""Real servers and real hosts on one machine: ZooKeeper ensembles, namespaced libvirt hosts."""
