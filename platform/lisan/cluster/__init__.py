"""Ray clusters: connects, counts what there is, maps items; the process of one worker."""
