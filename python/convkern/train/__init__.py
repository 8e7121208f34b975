"""Training: what Model.compile and Model.fit are given, and what they are made of.

optimizers, schedules     how parameters follow their gradients
losses, metrics           what is made small, what is reported
callbacks, curves         what happens around epochs; pictures
checkpoint                files that continue a training bit for bit
autodiff, lowering, step  from a graph to one compiled training step
loop, batches             the loops
transfer                  features of a trained network, a head on them, fine-tuning
"""

from .callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ProgressBar,
    ReduceLROnPlateau,
    TerminateOnNaN,
    TrainingCurves,
)
from .curves import confusion_matrix, plot_confusion, plot_history
from .losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Distillation,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
)
from .metrics import Accuracy, BinaryAccuracy, Metric, TopK
from .optimizers import SAM, SGD, Adam, AdamW, Optimizer, RMSprop
from .schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRateSchedule,
    OneCycle,
    PiecewiseConstantDecay,
    StepDecay,
    WarmUp,
)
from .transfer import deepest_layers, extract_features, finetune, linear_head
