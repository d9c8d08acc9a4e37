"""The front door: who leads, and a proxy for every client call."""
