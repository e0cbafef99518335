"""Tasks: what outputs mean (classes, numbers, boxes, masks), and how right they are."""
