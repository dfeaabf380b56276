"""Few channels a group, filters: each loaded vector serves several taps and rows of results."""
