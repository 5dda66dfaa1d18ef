"""Images (:class:`.ImageData`): stores of pixels, their random views, and the sets that have a name."""

from negbank.train.data.images.augment import Augment
from negbank.train.data.images.data import ImageData, image_splits
from negbank.train.data.images.files import Files
from negbank.train.data.images.store import ImageArray, ImageFiles, Images

__all__ = ["Augment", "Files", "ImageArray", "ImageData", "ImageFiles", "Images", "image_splits"]
