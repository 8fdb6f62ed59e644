"""A map in the browser: layers of a project or a run as web map tiles, labels, jobs, and who may ask for them."""
