"""Label a sample of the demo's map automatically, from its reference crowns.

Usage: python scripts/label_demo_sample.py points.gpkg (from `geograft sample demo-out/map.tif --out points.gpkg`)
"""

import sys
from pathlib import Path

import geopandas

CROWNS = Path(__file__).parents[1] / "src" / "geograft" / "data" / "yellowstone" / "elsewhere.gpkg"


def label(points: Path) -> None:
    """Fill in the reference of each point: tree where it lies in a crown, background elsewhere."""
    frame = geopandas.read_file(points, layer="points")
    crowns = geopandas.read_file(CROWNS).to_crs(frame.crs).union_all()
    frame["reference"] = ["tree" if crowns.covers(point) else "background" for point in frame.geometry]
    frame.to_file(points, layer="points", driver="GPKG")


if __name__ == "__main__":
    label(Path(sys.argv[1]))
