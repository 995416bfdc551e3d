"""What a run leaves beside its images: provenance, the HTML report, a submission."""
