"""Many runs within a given number of minutes -> the best file of each in one folder."""
