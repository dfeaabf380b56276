"""Sound, images and video as arrays, and folders of them as labelled batches.

Files are read by well-kept packages: soundfile, Pillow and PyAV, the extra ``media``. Each is imported when a file needs it.
"""

from __future__ import annotations

from .dataset import Dataset
from .errors import MediaError, MissingPackageError
from .folder import LabelledFiles, Skipped, kind_of, list_folder, stratified_split
from .forms import Form, ImageForm, SoundForm, VideoForm, common_form, fit_length
from .image import ImageHeader, fit_size, image_header, read_image, write_image
from .sound import Sound, SoundHeader, read_sound, sound_header, write_sound
from .video import Video, VideoHeader, read_video, video_header, write_video

__all__ = [
    "Dataset", "Form", "ImageForm", "ImageHeader", "LabelledFiles", "MediaError", "MissingPackageError", "Skipped", "Sound",
    "SoundForm", "SoundHeader", "Video", "VideoForm", "VideoHeader", "common_form", "fit_length", "fit_size", "image_header",
    "kind_of", "list_folder", "read_image", "read_sound", "read_video", "sound_header", "stratified_split", "video_header",
    "write_image", "write_sound", "write_video",
]  # fmt: skip
