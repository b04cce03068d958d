"""Tables and documents learned in one call, ending in a certificate: what was in them, and whether it is answered."""
