"""Reading and writing of vector layers."""
