"""When the memory may speak: trained gates, the relation check, abstention."""
