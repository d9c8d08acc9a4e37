"""The words everyone uses: capacities, messages, records, settings, errors, transport."""
