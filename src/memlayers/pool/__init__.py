"""The value pool that memory layers share: product keys, slots, and the optimizer of the rows that were read."""
