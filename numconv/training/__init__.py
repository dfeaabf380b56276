"""A folder of labelled sounds, images or videos, or a named example -> a trained network and what it does to unseen data.

This is what `numconv train` does, in terms of `numconv.media` and `numconv.nn`: `tasks` (the data), `networks` (a model, and how
long it learns), `augmenting` (shifts), `placing` (batches on a GPU), `training` (all together), `report` and `figures` (what is
printed and written). `classifying` is what `numconv classify` does with such a network.
"""

from __future__ import annotations

from .augmenting import Shift
from .classifying import Classifier, load_classifier
from .networks import epochs_for, image_layers, layers_for, sound_layers, video_layers
from .placing import array_for
from .report import describe_result, describe_task, draw_confusion
from .settings import Settings, read_settings
from .tasks import EXAMPLES, Task, example_task, folder_task, moving_shapes, split_task
from .training import Result, build_model, train

__all__ = [
    "EXAMPLES", "Classifier", "Result", "Settings", "Shift", "Task", "array_for", "build_model", "describe_result",
    "describe_task", "draw_confusion", "epochs_for", "example_task", "folder_task", "image_layers", "layers_for",
    "load_classifier", "moving_shapes", "read_settings", "sound_layers", "split_task", "train", "video_layers",
]  # fmt: skip
