"""What the program can be told to do, a file a command; heavy imports wait inside the functions."""
