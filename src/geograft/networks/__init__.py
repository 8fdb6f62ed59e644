"""Networks, and the pretrained encoders they are built on."""
