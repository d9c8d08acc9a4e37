"""The group manager daemon: election, the leader's role and the manager's role."""
