"""What turns the program into a service: a spool of inputs, and what is known of each of them, on disk."""
