"""What pytest leaves out everywhere: the doctests of bridges to packages that are not installed."""

import importlib.util

collect_ignore_glob = [f"numconv/{name}*" for name in ("dask", "jax", "torch") if importlib.util.find_spec(name) is None]
