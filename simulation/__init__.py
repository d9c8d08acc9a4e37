"""The world in virtual time: the real daemons, with everything around them simulated."""
