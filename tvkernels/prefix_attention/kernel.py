"""No kernel yet: the reference runs this op on every device."""
