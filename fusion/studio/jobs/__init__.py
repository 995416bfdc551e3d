"""What a visitor asks for -> a queue of jobs, their progress and their results."""
