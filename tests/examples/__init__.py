"""The programs of examples/, run as a user starts them."""
