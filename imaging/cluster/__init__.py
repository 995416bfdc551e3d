"""Work for many machines -> the same results as one machine's, by Ray; nothing here knows what the work is."""
