"""Ray clusters: connecting, mapping over items, and the process of one worker."""
