"""What can run a trained network: torch itself, ONNX Runtime or OpenVINO.

On a CPU every tile is computed alone and several of them at a time, each on one core. That is faster than batches: the
maps of one tile fit the caches, and no core waits for another. And what comes out for a tile cannot depend on the
tiles beside it, nor on how many cores there are.
"""
