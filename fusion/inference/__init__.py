"""Any image and running experts -> the upscaled image on disk, with its manifest; experts are callables here."""
