"""What the elected group leader does: membership, submissions, dispatch, address leases."""
