"""The hypervisor port and its drivers: libvirt and simulated."""
