"""Images and experts -> items: plan, run the experts, encode, commit."""
