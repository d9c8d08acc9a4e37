"""The local controller daemon: one per KVM host."""
