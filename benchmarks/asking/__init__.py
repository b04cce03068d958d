"""How facts are asked for, and what is answered then."""
