"""What every group manager does for its hosts: placement, commands, migrations."""
