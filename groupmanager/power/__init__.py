"""Power over hosts: waking, switching off and asking, each driver behind one port."""
