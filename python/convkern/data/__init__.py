"""Data: images from files and arrays, augmented, in batches that can be repeated.

    load_image                      one file
    ImageDataGenerator              Keras' augmentation: flow(arrays), flow_from_directory(folder)
    image_dataset_from_directory    a folder of classes, as it is
    read_idx, load_mnist, load_npz  data sets in files
    warp, affine_matrix             the one resampling;  mixup, cutmix, to_categorical    whole batches
    contact_sheet                   what it all looks like

Reading and writing image files needs Pillow (extra: convkern[image]); arrays need NumPy alone.
"""

from .batches import ArrayBatches, Batches, FileBatches
from .directory import image_dataset_from_directory
from .files import load_mnist, load_npz, read_idx
from .generator import ImageDataGenerator
from .images import load_image
from .sheet import contact_sheet
from .transforms import affine_matrix, cutmix, mixup, to_categorical, warp

__all__ = [
    "ArrayBatches",
    "Batches",
    "FileBatches",
    "ImageDataGenerator",
    "affine_matrix",
    "contact_sheet",
    "cutmix",
    "image_dataset_from_directory",
    "load_image",
    "load_mnist",
    "load_npz",
    "mixup",
    "read_idx",
    "to_categorical",
    "warp",
]
