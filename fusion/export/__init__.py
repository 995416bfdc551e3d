"""An ensemble and its fusion -> one file of another program."""
