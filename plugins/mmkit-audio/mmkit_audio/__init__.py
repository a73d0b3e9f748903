"""Sound for mmkit. Its parts are found through the package's entry points; importing this imports none of them."""
