"""Bounds on memory, checked against headers and settings before anything is allocated.

Memory otherwise depends on numbers in files and options: a card with tiles of 10^9 pixels, or a header that says
2^31 x 2^31 pixels, would end in a killed process instead of an error.
"""

from geograft.errors import InputError, SettingError

MAX_TILE_PX = 4096
"""Maximum tile size in pixels."""
MAX_BATCH_BYTES = 2**32
"""Maximum size of the pixels and predictions of one batch of tiles; the network needs a multiple of it."""
MAX_STEP_BYTES = 2**34
"""Maximum size of the pixels and labels of all batches of one optimizer step, which are in memory together."""
MAX_BANDS = 2048
"""Maximum number of bands of a raster. Hyperspectral sensors have a few hundred."""
MAX_SCENE_PX = 2**36
"""Maximum number of pixels of a scene of a tile set: its mask has as many."""
MAX_TILES = 4_000_000
"""Maximum number of planned tiles of a tile set, which are all in memory, about 1 kB each."""
MAX_LANES = 2_000_000
"""Maximum number of rows of tiles, over all panels, of one map: a ledger entry each, about 1 kB."""
MAX_TILES_PER_SIDE = 20_000_000
"""Maximum number of rows plus columns of tiles of one map: their positions are in memory, about 100 bytes each."""


def check_batch(batch_size: int, tile_px: int, pixel_bytes: int) -> None:
    """Raise SettingError if a batch of tiles with `pixel_bytes` bytes per pixel exceeds MAX_BATCH_BYTES."""
    tile_bytes = tile_px**2 * pixel_bytes
    if batch_size * tile_bytes <= MAX_BATCH_BYTES:
        return
    largest = MAX_BATCH_BYTES // tile_bytes
    remedy = f"Use a batch_size of {largest} or less." if largest else "Use smaller tiles or fewer bands."
    raise SettingError(
        f"batch_size = {batch_size}: tiles of {tile_px} x {tile_px} pixels with {pixel_bytes} bytes per pixel need "
        f"{batch_size * tile_bytes / 1e9:,.1f} GB, the maximum is {MAX_BATCH_BYTES / 1e9:.1f} GB. {remedy}"
    )


def check_training(batch_size: int, accumulate: int, repeat: int, tiles: int, tile_bytes: int) -> None:
    """Raise SettingError if `tiles` training tiles of `tile_bytes` need too much memory with these settings."""
    if tiles * repeat > MAX_TILES:
        raise SettingError(
            f"repeat = {repeat}: {tiles:,} training tiles are {tiles * repeat:,} in an epoch; the maximum is "
            f"{MAX_TILES:,}. Use a repeat of {max(1, MAX_TILES // tiles):,} or less, and more epochs."
        )
    needed = min(batch_size * accumulate, tiles * repeat) * tile_bytes
    if needed > MAX_STEP_BYTES:
        raise SettingError(
            f"accumulate = {accumulate}: the batches of one optimizer step are in memory together and need "
            f"{needed / 1e9:,.1f} GB, the maximum is {MAX_STEP_BYTES / 1e9:.1f} GB. Lower accumulate or batch_size."
        )


def check_band_count(name: str, bands: int) -> None:
    """Raise InputError if a raster has more than MAX_BANDS bands."""
    if bands > MAX_BANDS:
        raise InputError(
            f"{name} has {bands:,} bands according to its header; a raster may have at most {MAX_BANDS:,}. Check the "
            "file."
        )


def check_scene_size(name: str, height: int, width: int) -> None:
    """Raise InputError if a scene has more than MAX_SCENE_PX pixels."""
    if height * width > MAX_SCENE_PX:
        raise InputError(
            f"{name} has {width} x {height} pixels according to its header; a scene may have at most {MAX_SCENE_PX:,} "
            "in all. Check the file, or cut it into several scenes."
        )


def check_tile_count(tiles: int, tile_px: int, stride: int) -> None:
    """Raise InputError if a tile set would have more than MAX_TILES tiles."""
    if tiles > MAX_TILES:
        raise InputError(
            f"the images have about {tiles:,} tiles of {tile_px} pixels at a distance of {stride}; a tile set may have "
            f"at most {MAX_TILES:,}. Raise --tile-px, lower --overlap, or prepare fewer images."
        )


def check_map_size(name: str, size: tuple[int, int], tile_rows: int, tile_cols: int, panels: int) -> None:
    """Raise InputError if a map of `size` (height, width) has more than MAX_LANES lanes or MAX_TILES_PER_SIDE."""
    if tile_rows * panels > MAX_LANES or tile_rows + tile_cols > MAX_TILES_PER_SIDE:
        raise InputError(
            f"{name} has {size[1]} x {size[0]} pixels according to its header: {tile_rows * panels:,} strips of tiles; "
            f"a map may have at most {MAX_LANES:,}. Check the file, or map it in parts."
        )
