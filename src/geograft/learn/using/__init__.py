"""What a trained network says of tiles."""
